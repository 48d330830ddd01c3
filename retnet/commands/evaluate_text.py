"""`retnet eval --text`: bits per byte of text, in several precisions, and what they are worth."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import ArgumentParser

from retnet.commands.flags import UsageError, Values, add_flag, add_switch

if TYPE_CHECKING:
    import torch
    from rich.console import Console
    from rich.table import Table

    from retnet.data.text import Document
    from retnet.eval.compressors import CompressorScore
    from retnet.eval.precision import PrecisionScore
    from retnet.eval.round_trip import RoundTrip

Quantize = Literal["none", "int8"]

TEXT_FLAGS = (
    "text",
    "text_field",
    "split",
    "split_on",
    "window",
    "stride",
    "quantize",
    "positions",
    "compressors",
    "roundtrip",
    "roundtrip_bytes",
)


def add_text_flags(parser: ArgumentParser) -> None:
    """Declare --text and what goes with it."""
    text = (
        "text to score in fp32 and bf16, and no tasks: a text file, JSON lines, a folder of them, "
        'or "hf:NAME" for a data set; whatever `retnet prepare` reads'
    )
    add_flag(parser, "text", str | None, None, text, "SOURCE")
    add_flag(parser, "text_field", str, "text", "field or column of --text with the text", "NAME")
    add_flag(parser, "split", str, "validation", "of --text, where it is hf:NAME", "NAME")
    text = "regular expression; a line of --text in which it is found begins a new document"
    add_flag(parser, "split_on", str | None, None, text, "REGEX")
    text = (
        "read --text in windows of so many tokens that begin from nothing, instead of each "
        "document from its beginning to its end with the state carried along"
    )
    add_flag(parser, "window", int | None, None, text)
    text = "tokens between two windows, the last of each that count; by default half a window"
    add_flag(parser, "stride", int | None, None, text)
    add_flag(parser, "quantize", Quantize, "none", "int8: --text also with its matrices in int8")
    text = "show also what --text costs by how far into its document it stands"
    add_switch(parser, "positions", text)
    add_switch(parser, "compressors", "compress --text also with xz, bzip2 and PPMd")
    text = "compress the beginning of --text with the model, and decompress it, token by token"
    add_switch(parser, "roundtrip", text)
    add_flag(parser, "roundtrip_bytes", int, 50_000, "how much of it")


def require_text(values: Values) -> None:
    """UsageError where --text is missing for a flag that needs it."""
    if values["quantize"] != "none":
        raise UsageError("--quantize goes with --text; the tasks are scored as --dtype says")
    for name in ("positions", "compressors", "roundtrip", "window", "stride", "split_on"):
        if values[name]:
            raise UsageError(f"--{name} goes with --text SOURCE")


def _check_windows(values: Values) -> None:
    window, stride = values["window"], values["stride"]
    if stride is not None and window is None:
        raise UsageError("--stride is of windows; pass --window too")
    if window is not None and window < 1:
        raise UsageError(f"--window must be at least 1, got {window}")
    if window is not None and stride is not None and not 1 <= stride <= window:
        raise UsageError(f"--stride must be from 1 to --window, {window}, got {stride}")
    if window is not None and values["positions"]:
        raise UsageError("--positions are those of whole documents; leave out --window")


def score_text(folder: Path, device: "torch.device", values: Values) -> dict[str, Any]:
    """Score the model of a folder on the text of --text and show it; what a report says of it.

    Raises:
        ValueError: for what cannot be read, and UsageError for flags that do not do.
    """
    from rich.console import Console

    from retnet.checkpoint import read_config
    from retnet.data.prepare.documents import read_documents
    from retnet.device import threads
    from retnet.eval.round_trip import beginning

    _check_windows(values)
    console = Console(highlight=False)
    fields = {name: values[name] for name in ("text_field", "split", "split_on")}
    try:
        texts = list(read_documents(values["text"], **fields))
    except ValueError as error:
        raise UsageError(f"--text {error}") from error
    if not texts:
        raise UsageError(f"--text {values['text']!r} holds no text")
    if values["roundtrip"]:
        read_config(folder).require_retention("--roundtrip")
    if values["window"] is None and read_config(folder).state_grows:
        raise UsageError(
            "this model remembers every token, so that whole documents may not fit; pass --window, "
            "such as the context that it was trained with"
        )
    if values["roundtrip"]:
        first = beginning(texts, values["roundtrip_bytes"])
    with threads(values["threads"]):
        scores = _score(console, folder, texts, device, values)
        found: dict[str, Any] = {"scores": [asdict(score) for score in scores]}
        if values["compressors"]:
            others = _compress(console, texts, scores[0])
            found["compressors"] = [asdict(score) for score in others]
        if values["roundtrip"]:
            found["roundtrip"] = asdict(_round_trip(console, folder, first, device))
    return found


def _score(
    console: "Console",
    folder: Path,
    texts: "Sequence[Document]",
    device: "torch.device",
    values: Values,
) -> "list[PrecisionScore]":
    from retnet.eval.precision import score_precisions

    start, int8 = time.perf_counter(), values["quantize"] == "int8"
    scores = list(
        score_precisions(
            folder,
            texts,
            int8=int8,
            device=device,
            window=_window(values),
        )
    )
    console.print(_score_table(scores))
    if values["positions"]:
        console.print(_position_table(scores))
    seconds, first = time.perf_counter() - start, scores[0]
    console.print(
        f"perplexity with {first.weights}: {first.token_perplexity:,.3f} a {first.unit}, "
        f"{_number(first.word_perplexity)} a word (words and ends of lines, {first.num_words:,})"
    )
    count = f"{len(texts):,} document{'s' if len(texts) > 1 else ''}"
    console.print(f"{seconds:,.0f} s, {count}, {first.num_bytes:,} bytes")
    console.print(_protocol(values), style="dim", soft_wrap=True)
    return scores


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.5g}"


def _window(values: Values) -> tuple[int, int] | None:
    """The window and the stride that texts are read in, if they are."""
    window = values["window"]
    return None if window is None else (window, values["stride"] or max(1, window // 2))


def _protocol(values: Values) -> str:
    """What was read how, in a line."""
    windows = _window(values)
    if windows is None:
        return "each document was read from bos to its end, the state carried along"
    window, stride = windows
    return (
        f"read in windows of {window:,} tokens that begin with nothing, {stride:,} apart, of which "
        f"the last {stride:,} count (of a document's first window, all)"
    )


def _score_table(scores: "Sequence[PrecisionScore]") -> "Table":
    table = _table("weights", "bits per byte", f"more than {scores[0].weights}", "%")
    exact = scores[0].bits_per_byte
    for score in scores:
        more = score.bits_per_byte - exact
        table.add_row(
            score.weights,
            f"{score.bits_per_byte:.4f}",
            *(("", "") if score is scores[0] else (f"{more:+.5f}", f"{100 * more / exact:+.3f}")),
        )
    return table


def _position_table(scores: "Sequence[PrecisionScore]") -> "Table":
    unit = scores[0].unit
    table = _table("position", f"{unit}s", *(score.weights for score in scores))
    table.title = f"bits per {unit} by position in the document"
    for losses in zip(*(score.positions for score in scores), strict=True):
        table.add_row(
            f"{losses[0].first:,}–{losses[0].last:,}",
            f"{losses[0].num_tokens:,}",
            *(f"{loss.bits_per_token:.4f}" for loss in losses),
        )
    return table


def _compress(
    console: "Console", texts: "Sequence[Document]", model: "PrecisionScore"
) -> "list[CompressorScore]":
    from retnet.eval.compressors import EXTRA, score_compressors

    scores = list(score_compressors(texts))
    table = _table("compressed by", "bits per byte")
    table.add_row(f"this model, {model.weights}", f"{model.bits_per_byte:.4f}")
    for score in scores:
        bits = score.bits_per_byte
        missing = f"pip install 'retnet[{EXTRA}]'"
        # Escaped: rich takes [..] for a style.
        table.add_row(score.name, missing.replace("[", r"\[") if bits is None else f"{bits:.4f}")
    console.print(table)
    console.print(
        "Each document was compressed by itself; PPMd learns from the file that it is measured on, "
        "while a trained model has fixed weights, whose size is not counted."
    )
    return scores


def _round_trip(
    console: "Console", folder: Path, texts: "Sequence[Document]", device: "torch.device"
) -> "RoundTrip":
    from retnet.eval.round_trip import round_trip

    with _progress(console) as progress:
        done = round_trip(folder, texts, device=device, progress=progress)
    for line in _round_trip_lines(done):
        console.print(line, soft_wrap=True)
    return done


def _round_trip_lines(done: "RoundTrip") -> Iterator[str]:
    yield f"The first {done.num_bytes:,} bytes with the model in fp32, token by token:"
    yield (
        f"  coded       {done.coded_bytes:,} bytes, {done.header_bytes:,} of them a checksum and "
        "the documents' lengths"
    )
    yield f"              {done.coded_bits_per_byte:.4f} bits per byte without these"
    yield f"  stated      {done.stated_bits_per_byte:.4f} bits per byte"
    yield f"  difference  {done.difference_percent:+.3f} %"
    yield f"decoded: {'identical' if done.identical else 'DIFFERENT'}"


@contextmanager
def _progress(console: "Console") -> "Iterator[Callable[[int, int], None]]":
    """A bar on a terminal, nothing elsewhere; gives what is called with done and total tokens."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    with Progress(
        "coding",
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    ) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _table(first: str, *others: str) -> "Table":
    """A table of names and figures."""
    from rich.table import Table

    table = Table()
    table.add_column(first)
    for heading in others:
        table.add_column(heading, justify="right", no_wrap=True)
    return table
