"""`retnet generate`."""

import os
import secrets
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser

from retnet.commands.flags import Command, UsageError, Values, add_flag, naming_flags
from retnet.commands.models import add_model, model_folder
from retnet.commands.terminal import bytes_text, write_now

if TYPE_CHECKING:
    from collections.abc import Iterator

    from retnet.model import RetNet
    from retnet.text import Tokenizer

# Those of SamplingParams, which can't be asked here: it comes with torch. A test compares them.
SAMPLING: dict[str, tuple[Any, Any, str]] = {
    "max_tokens": (int | None, 256, "the most tokens to write; null for no limit"),
    "temperature": (float, 1.0, "below 1 for likelier text; 0 always takes the likeliest token"),
    "top_k": (int, 0, "only the k likeliest tokens; 0 for all"),
    "top_p": (float, 1.0, "only the likeliest tokens that together reach this probability"),
    "min_p": (float, 0.0, "only tokens at least this likely, compared with the likeliest"),
    "repetition_penalty": (
        float,
        1.0,
        "above 1: tokens that were there already become less likely",
    ),
    "frequency_penalty": (float, 0.0, "above 0: less likely with every time that it was written"),
    "presence_penalty": (float, 0.0, "above 0: what was written at all becomes less likely"),
}


def _add_flags(parser: ArgumentParser) -> None:
    parser.add_argument(
        "prompt",
        type=str,
        nargs="?",
        default="",
        metavar="PROMPT",
        help="the text to continue; - reads it from stdin; none begins a document",
    )
    add_model(parser)
    add_flag(parser, "num", int, 1, "how many texts to write, one after the other")
    add_flag(parser, "seed", int | None, None, "the same one writes the same; by default a new one")
    add_flag(parser, "device", str, "auto", "cpu, cuda, ...; auto: cuda where there is one")
    add_flag(parser, "threads", int | None, None, "CPU threads; by default torch's choice")
    _add_switch(parser, "echo", "write the prompt too, before what follows it")
    _add_switch(parser, "stats", "say on stderr how fast it went, as on a terminal")
    group = parser.add_argument_group("sampling", "How tokens are chosen, and when to stop.")
    for name, (kind, value, text) in SAMPLING.items():
        add_flag(group, name, kind, value, text)
    text = "texts that end it; they are not written themselves"
    group.add_argument("--stop", type=str, nargs="+", default=[], metavar="TEXT", help=text)


def _add_switch(parser: ArgumentParser, name: str, text: str) -> None:
    parser.add_argument(f"--{name}", action="store_true", help=text)


def _run(values: Values) -> int:
    for name, least in (("num", 1), ("threads", 1), ("seed", 0)):
        if values[name] is not None and not least <= values[name] < 2**63:
            raise UsageError(f"--{name} must be at least {least}, got {values[name]}")
    names = (*SAMPLING, "stop", "device")
    with naming_flags({name: f"--{name}" for name in names}):
        return _generate(values)


def _generate(values: Values) -> int:
    import torch

    from retnet.checkpoint import load_checkpoint
    from retnet.data.pretrained import load_any_tokenizer
    from retnet.device import find_device, threads
    from retnet.sampling import SamplingParams
    from retnet.text import complete

    params = SamplingParams(stop=tuple(values["stop"]), **{name: values[name] for name in SAMPLING})
    directory = model_folder(values["model"])
    prompt = _read_stdin() if values["prompt"] == "-" else _typed(values["prompt"])
    device = find_device(values["device"])
    model = load_checkpoint(directory, device=device)
    tokenizer = load_any_tokenizer(directory, vocab_size=model.config.vocab_size)
    seed = secrets.randbelow(2**32) if values["seed"] is None else values["seed"]
    generator = torch.Generator(device).manual_seed(seed)
    with threads(values["threads"]):
        for number in range(values["num"]):
            if values["num"] > 1:
                write_now(f"--- {number + 1} of {values['num']}\n")
            if values["echo"]:
                write_now(prompt)
            counting = _Counting(tokenizer)
            pieces = complete(model, counting, prompt, params, generator=generator)
            first_s, total_s = _stream(pieces, ends_line=values["num"] > 1)
            if values["stats"] or sys.stderr.isatty():
                report = _report(model, counting, first_s, total_s)
                sys.stderr.write(f"{report}; seed {seed}\n")
    return 0


def _read_stdin() -> str:
    return _as_utf8(sys.stdin.buffer.read(), "the prompt on stdin")


def _typed(prompt: str) -> str:
    """A prompt of the command line, whose bytes Python has read as the locale says."""
    return _as_utf8(os.fsencode(prompt), "the prompt") if sys.platform != "win32" else prompt


def _as_utf8(text: bytes, what: str) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"{what} is not UTF-8: {error}; convert it") from error


@dataclass
class _Counting:
    """A tokenizer that counts the tokens it is given: a text's bytes don't tell them exactly."""

    tokenizer: "Tokenizer"
    num_read: int = 0
    num_written: int = 0

    def __post_init__(self) -> None:
        self.bos_id, self.eos_id = self.tokenizer.bos_id, self.tokenizer.eos_id

    def encode(self, text: str) -> list[int]:
        ids = self.tokenizer.encode(text)
        self.num_read += len(ids)
        return ids

    def encode_within(self, text: str) -> list[int]:
        ids = self.tokenizer.encode_within(text)
        self.num_read += len(ids)
        return ids

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        self.num_written += len(ids)
        return self.tokenizer.decode_bytes(ids)


def _stream(pieces: "Iterator[str]", *, ends_line: bool) -> tuple[float, float]:
    """Write the pieces as they come; the seconds until the first one, and until the last.

    ends_line: whether a line break follows, as on a terminal.
    """
    start = time.perf_counter()
    first_s, last = None, "\n"
    for piece in pieces:
        first_s = first_s or time.perf_counter() - start
        last = piece
        write_now(piece)
    total_s = time.perf_counter() - start
    if not last.endswith("\n") and (ends_line or sys.stdout.isatty()):
        write_now("\n")
    return first_s or total_s, total_s


def _report(model: "RetNet", counted: _Counting, first_s: float, total_s: float) -> str:
    """How fast it went, and what the model had to remember."""
    read = f"{counted.num_read:,} tokens read in {first_s:.2f} s"
    written = f"{counted.num_written:,} written in {total_s - first_s:.2f} s"
    if counted.num_written > 1:
        rate = (counted.num_written - 1) / (total_s - first_s)
        written += f" ({rate:,.0f} a second)"
    if model.config.mixer != "retention":
        return f"{read}, {written}"
    state = bytes_text(4 * model.config.state_numbers)
    return f"{read}, {written}; state {state}, whatever the length"


COMMAND = Command(
    summary="continue a text with a trained model",
    usage="[PROMPT] [--model DIR] [flags]",
    details="The text goes to stdout as it comes.",
    add_flags=_add_flags,
    run=_run,
)
