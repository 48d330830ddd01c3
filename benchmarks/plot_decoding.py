"""The picture of the README: time and memory a token against context, from a record of
bench_decoding.py.

    python benchmarks/plot_decoding.py benchmarks/results/decoding-2-core-xeon-amx-default.json \
        --out docs/images/decoding.png
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

# What is drawn: the contender, its name, how it looks.
TIMES = (
    ("transformers' llama", "Hugging Face's Llama", "tab:orange", "-"),
    ("transformer, cache in place", "Transformer, cache in place", "tab:red", "-"),
    ("ours", "RetNet", "tab:blue", "-"),
    ("ours int8", "RetNet, int8", "tab:blue", ":"),
)
MEMORY = (
    ("transformer, cache in place", "a Transformer's cache", "tab:red", "-"),
    ("ours", "a RetNet's state", "tab:blue", "-"),
)


def main() -> None:
    """Draw what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("record", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    draw(json.loads(given.record.read_text()), given.out)
    print(f"wrote {given.out}")


def draw(record: dict[str, Any], out: Path) -> None:
    """Both panels, one text at a time."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    draw_panel(left, record, TIMES, "median_ms", "milliseconds a token")
    draw_panel(right, record, MEMORY, "state_mb", "MB to remember what was read")
    millions = record["settings"]["num_parameters"]["ours"] / 1e6
    machine = record["machine"]
    cpu = machine["cpu"].replace("(R)", "").replace(" Processor", "")
    where = f"{machine['cores']} cores of an {cpu}"
    figure.suptitle(f"{millions:.0f} million parameters in bf16, one text, {where}", fontsize=10)
    figure.savefig(out, dpi=144, metadata={"Software": None})


def draw_panel(
    axis: Axes, record: dict[str, Any], lines: tuple[tuple[str, ...], ...], key: str, label: str
) -> None:
    """One figure of a row, of several contenders, against the tokens read before."""
    for contender, name, color, style in lines:
        rows = rows_of(record, contender)
        lengths, values = [row["num_tokens_before"] for row in rows], [row[key] for row in rows]
        axis.plot(lengths, values, color=color, linestyle=style, marker="o", label=name)
    axis.set(xscale="log", yscale="log", xlabel="tokens read before", ylabel=label)
    axis.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axis.minorticks_off()
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)


def rows_of(record: dict[str, Any], contender: str) -> list[dict[str, Any]]:
    """A contender's steps of one text in bf16, the shortest context first."""
    asked = ("decode", contender, "bf16", 1)
    rows = [
        row
        for row in record["rows"]
        if (row["kind"], row["contender"], row["dtype"], row["batch_size"]) == asked
    ]
    return sorted(rows, key=lambda row: row["num_tokens_before"])


if __name__ == "__main__":
    main()
