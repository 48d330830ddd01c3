"""`make demo`: train a small RetNet here, compare it with compressors, let it write, and look at
its state.
"""

import argparse
import bz2
import lzma
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count, cycle
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from retnet import ModelConfig, RetNet, RetNetState, SamplingParams, complete, prefill, preset
from retnet.cli import exit_code
from retnet.commands.models import kv_cache_bytes
from retnet.commands.terminal import bytes_text, visible
from retnet.data.text import STDLIB, Corpus, Document, load_corpus, num_bytes
from retnet.data.tokenizer import ByteTokenizer
from retnet.train.config import TrainConfig
from retnet.train.loop import TrainResult, train

MODEL = preset("tiny")
TRAINING = TrainConfig(minutes=3.2)
SAMPLING = SamplingParams(max_tokens=500, temperature=0.8)
STDLIB_PROMPT = "def "
LENGTHS = (1, 1_000, 100_000)
RUNS = Path("runs")

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    # The .lzma container is the smallest, which counts where files are small.
    "lzma": lambda data: lzma.compress(
        data, format=lzma.FORMAT_ALONE, preset=9 | lzma.PRESET_EXTREME
    ),
    "bz2": lambda data: bz2.compress(data, 9),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo on the text of --data; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    text = 'a text file or a folder of text (default: "stdlib", Python\'s own sources)'
    parser.add_argument("--data", default=STDLIB, help=text)
    data = parser.parse_args(arguments).data
    training = replace(TRAINING, data=data, out=str(free_folder(RUNS)))
    return exit_code(lambda: demo(MODEL, training, Console(highlight=False)))


def free_folder(runs: Path) -> Path:
    """The first of runs/demo-1, runs/demo-2, ... that is not there yet."""
    return next(path for path in (runs / f"demo-{i}" for i in count(1)) if not path.exists())


def demo(model: ModelConfig, training: TrainConfig, console: Console) -> int:
    """Train, then show what came of it; the exit code."""
    minutes = f", about {training.budget_s / 60:g} minutes" if training.budget_s else ""
    console.rule(f"1. training{minutes}", align="left")
    result = train(model, training, console=console)
    if result.stopped_by is not None or result.validation_bits_per_byte is None:
        return result.exit_code
    corpus = load_corpus(training.data)
    console.rule("2. bits per byte of text that it has never seen", align="left")
    show_compression(result, corpus, console)
    console.rule("3. what it writes", align="left")
    prompt = STDLIB_PROMPT if training.data == STDLIB else first_line(corpus.validation)
    show_sample(result.model, prompt, console)
    console.rule("4. what it has to remember", align="left")
    show_state(result.model, corpus, console)
    console.rule("and now", align="left")
    show_next(result, prompt, console)
    return 0


def show_compression(result: TrainResult, corpus: Corpus, console: Console) -> None:
    """The model beside compressors, on the same held-out files."""
    files = [document.data for document in corpus.validation]
    table = new_table("", "file by file", "all as one stream")
    table.add_row("this model", f"{result.validation_bits_per_byte:.3f}", "–")
    for name, compress in COMPRESSORS.items():
        with console.status(f"compressing with {name}"):
            alone, stream = (
                bits_per_byte(compress, files),
                bits_per_byte(compress, [b"".join(files)]),
            )
        table.add_row(name, f"{alone:.3f}", f"{stream:.3f}")
    console.print(table)
    names = {document.name for document in corpus.train}
    where = "the text before it" if corpus.validation[0].name in names else "other files"
    console.print(
        f"Held-out files: {len(files):,}, with {num_bytes(corpus.validation):,} bytes; fewer bits "
        "are better. The compressors learn from the very text that they are measured on, the more "
        f"of it in one stream. The model learned from {where}; its weights are fixed, and it "
        "begins every file anew."
    )


def bits_per_byte(compress: Callable[[bytes], bytes], files: Sequence[bytes]) -> float:
    """Bits that the compressed files take, each alone, by the bytes that were in them."""
    return 8 * sum(len(compress(data)) for data in files) / sum(map(len, files))


def first_line(documents: Sequence[Document]) -> str:
    """The first line with text in it, in short, to go on from."""
    text = documents[0].data.decode()
    return next(line for line in text.splitlines() if line.strip())[:60]


def show_sample(model: RetNet, prompt: str, console: Console) -> None:
    """The prompt, and what follows it as it comes."""
    console.print(visible(prompt), style="bold", markup=False, end="", soft_wrap=True)
    generator = torch.Generator(device_of(model)).manual_seed(0)
    start, length = time.perf_counter(), 0
    for piece in complete(model, ByteTokenizer(), prompt, SAMPLING, generator=generator):
        length += len(piece)
        console.print(visible(piece), markup=False, end="", soft_wrap=True)
    rate = length / (time.perf_counter() - start)
    console.print(f"\n({length:,} characters, {rate:,.0f} a second)", style="dim")


def show_state(model: RetNet, corpus: Corpus, console: Console) -> None:
    """The size of the state as the model reads on and on, beside that of a KV cache."""
    table = new_table("tokens read", "its state (fp32)", "a KV cache (16 bit)", "time to read")
    with console.status(f"reading {LENGTHS[-1]:,} tokens"):
        for length, state, seconds in read_on(model, token_ids(corpus, LENGTHS[-1]), LENGTHS):
            cache = bytes_text(length * kv_cache_bytes(model.config))
            table.add_row(f"{length:,}", bytes_text(state.num_bytes), cache, f"{seconds:.2f} s")
    console.print(table)
    console.print(
        "The KV cache is that of a Transformer with as many layers and the same width; it was "
        "computed, not run. The state was read off the model after so many tokens."
    )


def token_ids(corpus: Corpus, length: int) -> Tensor:
    """The first tokens [1, length] of the text, held-out files first, over again if it is short."""
    documents = cycle((*corpus.validation, *corpus.train))
    data = bytearray()
    while len(data) < length:
        data += next(documents).data
    return torch.tensor([ByteTokenizer().encode(bytes(data[:length]))])


def read_on(
    model: RetNet, ids: Tensor, lengths: Sequence[int]
) -> Iterator[tuple[int, RetNetState, float]]:
    """(length, the state, seconds) after reading so many of the tokens [1, T], each only once."""
    ids = ids.to(device_of(model))
    state, start, begin = None, time.perf_counter(), 0
    for length in lengths:
        _, state = prefill(model, ids[:, begin:length], state)
        begin = length
        yield length, state, time.perf_counter() - start


def show_next(result: TrainResult, prompt: str, console: Console) -> None:
    """Commands to go on with."""
    out, retnet = shlex.quote(str(result.out)), command_name()
    for command in (
        f"{retnet} generate {shlex.quote(prompt)} --model {out}",
        f"{retnet} inspect --model {out}",
        f"{retnet} train --help",
    ):
        console.print(command, markup=False, soft_wrap=True)
    if (result.out / "loss.png").exists():
        console.print(f"The loss is drawn in {result.out / 'loss.png'}.", soft_wrap=True)


def command_name() -> str:
    """How to call `retnet` from here: the environment of `make` is not on the PATH."""
    script = Path(sys.executable).with_name("retnet")
    if not script.exists():
        return f"{shlex.quote(sys.executable)} -m retnet"
    inside = script.is_relative_to(Path.cwd())
    return shlex.quote(str(script.relative_to(Path.cwd()) if inside else script))


def new_table(*headings: str) -> Table:
    """A table whose columns after the first are numbers."""
    table = Table()
    for column, heading in enumerate(headings):
        table.add_column(heading, justify="left" if column == 0 else "right", no_wrap=True)
    return table


def device_of(model: RetNet) -> torch.device:
    """Where the model's weights are."""
    return next(model.parameters()).device


if __name__ == "__main__":
    sys.exit(main())
