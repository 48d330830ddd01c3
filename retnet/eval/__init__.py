"""EleutherAI's evaluation harness (the package lm_eval) on a model, with the data of files or the
hub's; and what weights of fewer bits cost on text (`precision`). All but `config` and `precision`
needs `pip install 'retnet[eval]'`.
"""
