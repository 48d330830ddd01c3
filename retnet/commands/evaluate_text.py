"""`retnet eval --text`: bits per byte of text, in several precisions."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from retnet.commands.flags import Values

if TYPE_CHECKING:
    import torch
    from rich.table import Table

    from retnet.eval.precision import PrecisionScore

Quantize = Literal["none", "int8"]


def score_text(folder: Path, device: "torch.device", values: Values) -> list[dict[str, Any]]:
    """Score the model of a folder on the text of --text and show it; the scores, for a report."""
    from rich.console import Console

    from retnet.data.text import find_documents
    from retnet.device import threads
    from retnet.eval.precision import score_precisions

    texts, start = find_documents(values["text"]), time.perf_counter()
    with threads(values["threads"]):
        int8 = values["quantize"] == "int8"
        scores = list(score_precisions(folder, texts, int8=int8, device=device))
    console = Console(highlight=False)
    console.print(_table(scores))
    seconds, num_bytes = time.perf_counter() - start, scores[0].num_bytes
    console.print(f"{seconds:,.0f} s, {len(texts):,} documents, {num_bytes:,} bytes")
    return [asdict(score) for score in scores]


def _table(scores: "list[PrecisionScore]") -> "Table":
    from rich.table import Table

    table = Table()
    table.add_column("weights")
    for heading in ("bits per byte", f"more than {scores[0].weights}", "%"):
        table.add_column(heading, justify="right", no_wrap=True)
    exact = scores[0].bits_per_byte
    for score in scores:
        more = score.bits_per_byte - exact
        table.add_row(
            score.weights,
            f"{score.bits_per_byte:.4f}",
            *(("", "") if score is scores[0] else (f"{more:+.5f}", f"{100 * more / exact:+.3f}")),
        )
    return table
