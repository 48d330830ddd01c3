"""Reading a prompt and writing after it: a RetNet against Transformers of equal size, on a CPU.

    python benchmarks/bench_decoding.py                     # minutes, with glibc as it is
    python benchmarks/bench_decoding.py --allocator tuned --save some-name
    python benchmarks/bench_decoding.py --quick             # seconds; shows that it runs

All contenders take turns in one process with one allocator. The last line of the output is the
whole result as JSON.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial

import torch
from decoders import (
    LLAMA,
    OURS,
    OURS_INT8,
    OURS_STEP,
    OURS_TORCH,
    PIECE,
    TRANSFORMER,
    Decoder,
    decoders,
    missing,
)
from frame import Machine, main, parser_with_common_options, require_positive
from rich.console import Console
from torch import Tensor

from retnet.bench import Ratio, Report, Row, quotient, table, times_ms
from retnet.config import ModelConfig, preset
from retnet.measure import dtype_name, measure

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
PROMPT = 8192
NOTES = (
    "What a state or cache holds is random: nobody reads the context before the clock runs.",
    f"{OURS}: the decoder that servers use, its native kernel; {OURS_INT8}: with matrices in "
    f"bytes and all else in bf16; {OURS_TORCH}: the decoder without a compiler; {OURS_STEP}: "
    "retnet.generation.step.",
    "A step writes one token in each row. GB/s: the weights, and all that is read, once a step. "
    "share: of the rate at which torch sums a large tensor in this run; above 100 where weights "
    "stay in the processor's cache, or are read faster than that.",
    "prefill ends in the logits after the last token only, on all sides; the decoders read it in "
    f"pieces of {PIECE}, as a server does, ours, step in larger ones.",
)
DECODE_COLUMNS = {
    "contender": "contender",
    "dtype": "dtype",
    "batch_size": "B",
    "num_tokens_before": "context",
    "median_ms": "ms/step",
    "min_ms": "min",
    "max_ms": "max",
    "tokens_per_s": "tokens/s",
    "state_mb": "state MB",
    "weight_gb_per_s": "weights GB/s",
    "read_gb_per_s": "all GB/s",
    "share_percent": "share %",
}
PREFILL_COLUMNS = {
    "contender": "contender",
    "dtype": "dtype",
    "num_tokens": "tokens",
    "median_ms": "ms",
    "min_ms": "min",
    "max_ms": "max",
    "tokens_per_s": "tokens/s",
}


def parser() -> argparse.ArgumentParser:
    """The options."""
    parser = parser_with_common_options(__doc__)
    add = parser.add_argument
    add("--preset", default="base", help="the RetNet, a name of retnet.PRESETS")
    add("--heads", type=int, default=12, help="of the RetNet; Transformers' heads have size 64")
    add("--vocab-size", type=int, default=16384)
    add("--contexts", type=int, nargs="+", default=[512, 2048, 8192, 32768], help="at batch 1")
    add("--batch-size", type=int, default=16, help="of one more point, at the first context")
    add("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    add("--prompt", type=int, default=PROMPT, help="tokens of the prefill; 0 to leave it out")
    add("--steps", type=int, default=8, help="tokens in a turn")
    add("--prefill-rounds", type=int, default=3)
    return parser


def check(arguments: argparse.Namespace) -> None:
    """ValueError for sizes that cannot be run; and the sizes of --quick."""
    require_positive(
        arguments, "heads", "vocab_size", "contexts", "batch_size", "steps", "prefill_rounds"
    )
    if arguments.quick:
        arguments.contexts, arguments.batch_size, arguments.prompt = [32, 128], 2, 256
        arguments.steps, arguments.rounds, arguments.prefill_rounds = 2, 2, 1
    if arguments.prompt < 0:
        raise ValueError(f"--prompt must be at least 0, got {arguments.prompt}")
    model_config(arguments)


def model_config(arguments: argparse.Namespace) -> ModelConfig:
    """The RetNet to measure; its rivals are made to its size."""
    if arguments.quick:
        return ModelConfig(vocab_size=256, d_model=128, num_layers=2, num_heads=2)
    return preset(arguments.preset, vocab_size=arguments.vocab_size, num_heads=arguments.heads)


def run(arguments: argparse.Namespace, machine: Machine, console: Console) -> Report:
    """Measure everything, showing each table as soon as it is done."""
    config = model_config(arguments)
    contenders = decoders(config, tuple(DTYPES[name] for name in arguments.dtypes))
    num_parameters = {decoder.name: decoder.num_parameters for decoder in contenders}
    console.print("parameters: " + ", ".join(f"{name} {n:,}" for name, n in num_parameters.items()))
    points = [(1, context) for context in arguments.contexts]
    points.append((arguments.batch_size, arguments.contexts[0]))
    rows: list[Row] = []
    for batch_size, context in points:
        found = decode_rows(contenders, batch_size, context, arguments, machine)
        console.print(table(f"decoding, B={batch_size}, context {context}", found, DECODE_COLUMNS))
        rows += found
    if arguments.prompt:
        found = prefill_rows(contenders, config.vocab_size, arguments)
        console.print(table("prefill, B=1", found, PREFILL_COLUMNS))
        rows += found
    settings = {
        "model": config.to_dict(),
        "num_parameters": num_parameters,
        "steps": arguments.steps,
        "rounds": arguments.rounds,
        "prefill_rounds": arguments.prefill_rounds,
        **machine.limits(),
    }
    return Report("decoding", machine.facts, settings, rows, ratios(rows), (*missing(), *NOTES))


def decode_rows(
    contenders: Sequence[Decoder],
    batch_size: int,
    context: int,
    arguments: argparse.Namespace,
    machine: Machine,
) -> list[Row]:
    """A row for each contender: the time of a step, one token in each row, after the context."""
    room = arguments.steps * (arguments.rounds + 1)
    sessions = {decoder.title: decoder.begin(batch_size, context, room) for decoder in contenders}
    turns = {title: partial(session.decode, arguments.steps) for title, session in sessions.items()}
    timings = measure(turns, arguments.rounds)
    rows = []
    for decoder in contenders:
        step = timings[decoder.title].divided_by(arguments.steps)
        state_bytes = sessions[decoder.title].state_bytes
        read = (decoder.weight_bytes + state_bytes) / step.median_s
        row = {
            "kind": "decode",
            "contender": decoder.name,
            "dtype": dtype_name(decoder.dtype),
            "batch_size": batch_size,
            "num_tokens_before": context,
            **times_ms(step),
            "tokens_per_s": batch_size / step.median_s,
            "state_mb": state_bytes / 2**20,
            "weight_gb_per_s": decoder.weight_bytes / step.median_s / 1e9,
            "read_gb_per_s": read / 1e9,
            "share_percent": 100 * read / machine.read_bytes_per_s,
        }
        rows.append(row)
    return rows


def prefill_rows(
    contenders: Sequence[Decoder], vocab_size: int, arguments: argparse.Namespace
) -> list[Row]:
    """A row for each contender: the time to read one prompt. A short one warms up."""
    contenders = [decoder for decoder in contenders if decoder.prefill is not None]
    prompt = torch.randint(vocab_size, (1, arguments.prompt))
    for decoder in contenders:
        read(decoder, prompt[:, :256])
    turns = {decoder.title: partial(read, decoder, prompt) for decoder in contenders}
    timings = measure(turns, arguments.prefill_rounds, warmup=0)
    return [
        {
            "kind": "prefill",
            "contender": decoder.name,
            "dtype": dtype_name(decoder.dtype),
            "batch_size": 1,
            "num_tokens": arguments.prompt,
            **times_ms(timings[decoder.title]),
            "tokens_per_s": arguments.prompt / timings[decoder.title].median_s,
        }
        for decoder in contenders
    ]


def read(decoder: Decoder, prompt: Tensor) -> Tensor:
    """The logits [1, vocab_size] after the prompt [1, T]."""
    assert decoder.prefill is not None
    with torch.inference_mode():
        return decoder.prefill(prompt)


def ratios(rows: Sequence[Row]) -> list[Ratio]:
    """What this project promises of decoding; None where a side was not measured."""

    def ms(contender: str, dtype: str = "bf16", **wanted: int) -> float | None:
        wanted_row = {"contender": contender, "dtype": dtype, **wanted}
        return next((row["median_ms"] for row in rows if wanted_row.items() <= row.items()), None)

    def decode_ms(contender: str, context: int, batch_size: int = 1) -> float | None:
        return ms(contender, num_tokens_before=context, batch_size=batch_size)

    def prefill(one: str, rival: str, dtype: str, at_least: float | None = None) -> Ratio:
        theirs, ours = (ms(name, dtype, num_tokens=PROMPT) for name in (rival, one))
        name = f"prefill speed {dtype}, {PROMPT} tokens: {one} / {rival}"
        return Ratio(name, quotient(theirs, ours), at_least=at_least)

    def decode(
        rival: str, context: int, batch_size: int = 1, at_least: float | None = None
    ) -> Ratio:
        theirs, ours = (decode_ms(name, context, batch_size) for name in (rival, OURS))
        name = f"decoding speed bf16, B={batch_size}, context {context}: ours / {rival}"
        return Ratio(name, quotient(theirs, ours), at_least=at_least)

    one = decode_ms(OURS, 512)
    growth = quotient(decode_ms(OURS, 32768), one)
    many = quotient(one, decode_ms(OURS, 512, 16))
    int8 = quotient(one, decode_ms(OURS_INT8, 512))
    return [
        Ratio("decoding ms a token, bf16, B=1: ours", one, at_most=5),
        Ratio("decoding time bf16, B=1, ours: context 32768 / 512", growth, at_most=1.15),
        Ratio("tokens/s bf16, ours: 16 rows / 1", many and 16 * many, at_least=8),
        Ratio("tokens/s, B=1: ours int8 / ours bf16", int8, at_least=1.8),
        decode(LLAMA, 512, 16, at_least=5),
        decode(LLAMA, 512),
        decode(LLAMA, 8192, at_least=8),
        decode(LLAMA, 32768, at_least=30),
        *(decode(TRANSFORMER, context) for context in (512, 8192, 32768)),
        decode(OURS_TORCH, 512),
        decode(OURS_TORCH, 512, 16),
        prefill(OURS_STEP, TRANSFORMER, "bf16", at_least=4),
        prefill(OURS_STEP, LLAMA, "bf16", at_least=4),
        *(prefill(OURS_STEP, rival, "fp32") for rival in (TRANSFORMER, LLAMA)),
        *(prefill(OURS, LLAMA, dtype) for dtype in ("bf16", "fp32")),
    ]


if __name__ == "__main__":
    sys.exit(main(parser(), run, check))
