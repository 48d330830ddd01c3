"""EleutherAI's evaluation harness (the package lm_eval) on a model, with the data of files or the
hub's: `harness`, `items` and `local_*`, which need `pip install 'retnet[eval]'`. And bits per byte
of text: with weights of fewer bits (`precision`), by position (`positions`), beside compressors
(`compressors`), and as the size of a code that can be read back (`compression`, `round_trip`).
"""
