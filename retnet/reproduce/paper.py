"""The paper's own figures (arXiv 2307.08621, version 4), to stand beside what is measured."""

# Table 1: (inference cost a step, memory for long sequences).
TABLE_1 = {
    "Transformer": ("O(N)", ""),
    "Transformer, not fused": ("", "O(N²)"),
    "Linear Transformer": ("O(1)", "O(N)"),
    "RWKV": ("O(1)", "O(N)"),
    "H3": ("O(1)", "O(N log N)"),
    "Hyena": ("O(N)", "O(N log N)"),
    "RetNet": ("O(1)", "O(N)"),
}

# Table 3, 6.7B: zero-shot and four-shot accuracy in percent of (Transformer, RetNet).
TABLE_3 = {
    "hellaswag": ((55.9, 60.7), (55.8, 60.5)),
    "boolq": ((62.0, 62.2), (58.7, 60.1)),
    "copa": ((69.0, 77.0), (71.0, 78.0)),
    "piqa": ((74.6, 75.4), (75.0, 76.0)),
    "wsc273": ((69.5, 77.2), (71.9, 77.9)),
    "winogrande": ((56.5, 58.1), (57.3, 59.9)),
    "storycloze_2018": ((75.0, 76.0), (75.4, 75.9)),
}

# Table 4, 8 x A100-80GB, length 8192: memory in GB and words a second of (Transformer, Transformer
# with FlashAttention, RetNet).
TABLE_4 = {
    "1.3B": ((74.8, 38.8, 34.5), (10832.4, 63965.2, 73344.8)),
    "2.7B": ((69.6, 42.1, 42.0), (5186.0, 34990.2, 38921.2)),
    "6.7B": ((69.0, 51.4, 48.0), (2754.4, 16230.1, 17458.6)),
    "13B": ((61.4, 46.3, 45.9), (1208.9, 7945.1, 8642.2)),
}

# Table 5, 200M: perplexity in domain, and on PG22, QMSum, GovReport and SummScreen.
TABLE_5 = {
    "RWKV": (30.92, 51.41, 28.17, 19.80, 25.78),
    "H3": (29.97, 49.17, 24.29, 19.19, 25.11),
    "Hyena": (32.08, 52.75, 28.18, 20.55, 26.51),
    "Linear Transformer": (40.24, 63.86, 28.45, 25.33, 32.02),
    "RetNet": (26.05, 45.27, 21.33, 16.52, 22.48),
}

# Table 6, the same sets.
TABLE_6 = {
    "RetNet": (26.05, 45.27, 21.33, 16.52, 22.48),
    "- swish gate": (27.84, 49.44, 22.52, 17.45, 23.72),
    "- GroupNorm": (27.54, 46.95, 22.61, 17.59, 23.73),
    "- gamma decay": (27.86, 47.85, 21.99, 17.49, 23.70),
    "- multi-scale decay": (27.02, 47.18, 22.08, 17.17, 23.38),
    "reduce head dimension": (27.68, 47.72, 23.09, 17.46, 23.41),
}

# Table 8: perplexity of the last 128 tokens of 2,048 at contexts of 512, 1,024 and 2,048.
TABLE_8 = {"Transformer": (13.55, 12.56, 12.35), "RetNet": (13.09, 12.14, 11.98)}

# Figure 1, at 8,192 tokens, 7B: how many times less memory, more throughput and less latency.
FIGURE_1 = {"memory": 3.4, "throughput": 8.4, "latency": 15.6}

# Figure 5: what independent readers saw in the plot, for no numbers are printed; RetNet and
# Transformer.
FIGURE_5 = {"1.3B": (14.8, 14.5), "2.7B": (13.2, 13.4), "6.7B": (12.8, 13.0)}
