"""EleutherAI's evaluation harness (the package lm_eval) on a model, with the data of files or the
hub's. Everything but `retnet.eval.config` needs `pip install 'retnet[eval]'`.
"""
