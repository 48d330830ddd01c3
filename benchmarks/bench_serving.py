"""A server of a RetNet and its clients, beside a Transformer of equal size behind `transformers`.

    python benchmarks/bench_serving.py                     # a quarter of an hour
    python benchmarks/bench_serving.py --save some-name
    python benchmarks/bench_serving.py --quick             # seconds; shows that it runs

A real `retnet serve` and clients that stream over HTTP, on one machine. The last line of the output
is the whole result as JSON.
"""

import argparse
import asyncio
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import generating
import torch
from clients import Answer, Ask, clients, stream, window
from frame import Machine, main, parser_with_common_options, require_positive
from rich.console import Console
from served import Server, save_random_model, serving

from retnet.bench import Ratio, Report, Row, quotient, table
from retnet.config import ModelConfig, preset
from retnet.measure import in_fresh_process
from retnet.model import RetNet

OURS = "retnet serve"
NOTES = (
    "Clients ask again as soon as they have an answer. Prompts and answers have random lengths, "
    "the same for all contenders; a context is a beginning that all prompts share.",
    "first: from a request to its first token. gap: from a token to the next one of its answer.",
    "CPU: what all clients took of one processor, which the server could not have.",
    "memory: how far a process rises above where it stood before the context, at its peak.",
    "short + N: while prompts of N tokens come in between, one after the other.",
    "After a context, transformers' generate goes on from a cache of random numbers that was not "
    "read, with all rows in step and no HTTP.",
)
LOAD_COLUMNS = {
    "contender": "contender",
    "load": "load",
    "clients": "clients",
    "context": "context",
    "tokens_per_s": "tokens/s",
    "first_ms": "first ms",
    "first_p95_ms": "p95",
    "gap_ms": "gap ms",
    "gap_p95_ms": "p95",
    "gap_max_ms": "max",
    "num_requests": "asked",
    "client_cpu_percent": "CPU %",
}
MEMORY_COLUMNS = {
    "contender": "contender",
    "context": "context",
    "state_mb": "state or cache MB",
    "rise_mb": "memory MB",
}
PREFIX_COLUMNS = {"contender": "contender", "what": "prompt", "first_ms": "first ms"}


def parser() -> argparse.ArgumentParser:
    """The options."""
    parser = parser_with_common_options(__doc__)
    add = parser.add_argument
    add("--preset", default="base", help="the RetNet, a name of retnet.PRESETS")
    add("--heads", type=int, default=12, help="of the RetNet; Transformers' heads have size 64")
    add("--vocab-size", type=int, default=16384)
    add("--clients", type=int, nargs="+", default=[1, 16, 64])
    add("--contexts", type=int, nargs="+", default=[1024, 8192], help="of 1 and 16 clients")
    add("--memory-contexts", type=int, nargs="+", default=[1024, 8192, 32768])
    add("--long", type=int, default=8192, help="tokens of the prompts that come in between")
    add("--seconds", type=float, default=20, help="of each load")
    add("--long-prompts", type=int, default=3, help="cold, repeated, and in between, each")
    add("--steps", type=int, default=8, help="tokens that generate writes after a context")
    add("--no-rival", action="store_true", help="leave transformers out")
    return parser


def check(arguments: argparse.Namespace) -> None:
    """ValueError for sizes that cannot be run; and the sizes of --quick."""
    if arguments.quick:
        arguments.clients, arguments.contexts, arguments.long = [1, 4], [512], 1024
        arguments.memory_contexts, arguments.seconds = [256, 1024], 1.0
        arguments.long_prompts, arguments.steps = 1, 2
    names = ("clients", "contexts", "memory_contexts", "long", "long_prompts", "steps")
    require_positive(arguments, "heads", "vocab_size", *names)
    if not arguments.seconds > 0:
        raise ValueError(f"--seconds must be above 0, got {arguments.seconds}")
    model_config(arguments)


def model_config(arguments: argparse.Namespace) -> ModelConfig:
    """The RetNet to serve; its rival is made to its size."""
    if arguments.quick:
        return ModelConfig(vocab_size=1024, d_model=128, num_layers=2, num_heads=2)
    return preset(arguments.preset, vocab_size=arguments.vocab_size, num_heads=arguments.heads)


class Asks:
    """Requests of random lengths, the same ones each time.

    before: what all prompts begin with.
    """

    def __init__(self, config: ModelConfig, seed: int, before: Sequence[int] = ()) -> None:
        self._random, self._config = random.Random(seed), config
        self._before = list(before)

    def __iter__(self) -> Iterator[Ask]:
        return self

    def __next__(self) -> Ask:
        num_new, num_tokens = self._random.randint(16, 96), self._random.randint(32, 128)
        return Ask([*self._before, *self.ids(num_new)], num_tokens)

    def ids(self, count: int) -> list[int]:
        """Ids of random tokens."""
        return [self._random.randrange(256, self._config.vocab_size) for _ in range(count)]


def run(arguments: argparse.Namespace, machine: Machine, console: Console) -> Report:
    """Measure everything, showing each table as soon as it is done."""
    config = model_config(arguments)
    with torch.device("meta"):
        num_parameters = sum(weight.numel() for weight in RetNet(config).parameters())
    console.print(f"{num_parameters:,} parameters, bf16")
    with tempfile.TemporaryDirectory() as folder:
        save_random_model(Path(folder), config, torch.bfloat16)
        rows = our_rows(Path(folder), config, arguments, console)
    if not arguments.no_rival and find_spec("transformers"):
        rows += rival_rows(config, arguments, console)
    names = ("clients", "contexts", "memory_contexts", "long", "seconds", "long_prompts", "steps")
    settings = {
        "model": config.to_dict(),
        "num_parameters": num_parameters,
        "command": sys.argv,
        **{name: getattr(arguments, name) for name in names},
        **_versions(),
        **machine.limits(),
    }
    found = ratios(rows, arguments)
    return Report("serving", machine.facts, settings, rows, found, (*_missing(), *NOTES))


def our_rows(
    folder: Path, config: ModelConfig, arguments: argparse.Namespace, console: Console
) -> list[Row]:
    """All of the server's."""
    flags = ("--dtype", "bf16", "--slots", str(max(*arguments.clients, 16)))
    with serving(folder, *flags, threads=arguments.threads) as server:
        loads = asyncio.run(our_loads(server, config, arguments))
        console.print(table("loads", loads, LOAD_COLUMNS))
        prefixes = asyncio.run(prefix_rows(server, config, arguments))
        console.print(table("a beginning that is known", prefixes, PREFIX_COLUMNS))
    alone = ("--dtype", "bf16", "--slots", "1", "--prefix_cache_mb", "0")
    with serving(folder, *alone, threads=arguments.threads) as server:
        memory = asyncio.run(memory_rows(server, config, arguments))
    console.print(table("memory", memory, MEMORY_COLUMNS))
    return [*loads, *prefixes, *memory]


async def our_loads(
    server: Server, config: ModelConfig, arguments: argparse.Namespace
) -> list[Row]:
    """A row for each number of clients and context, and that with long prompts in between."""
    rows = [
        await load_row(server, Asks(config, 0), num_clients, 0, arguments.seconds)
        for num_clients in arguments.clients
    ]
    for context in arguments.contexts:
        before = Asks(config, context).ids(context)
        await stream(server.port, Ask(before, 1), [])  # known from now on
        for num_clients in context_clients(arguments):
            asks = Asks(config, 0, before)
            rows.append(await load_row(server, asks, num_clients, context, arguments.seconds))
    return [*rows, await mixed_row(server, config, arguments)]


def context_clients(arguments: argparse.Namespace) -> list[int]:
    """The numbers of clients with a context."""
    return [number for number in arguments.clients if number <= 16]


async def load_row(
    server: Server, asks: Iterator[Ask], num_clients: int, context: int, seconds: float
) -> Row:
    """What so many clients get."""
    async with clients(server.port, num_clients, asks) as answers, window() as found:
        await asyncio.sleep(seconds)
    await _until_idle(server)
    return _row("short", num_clients, context, found[0].figures(answers))


async def mixed_row(server: Server, config: ModelConfig, arguments: argparse.Namespace) -> Row:
    """What clients with short prompts get while a long one is being read, again and again."""
    num_clients = context_clients(arguments)[-1]
    long, longs = Asks(config, 1), list[Answer]()
    async with clients(server.port, num_clients, Asks(config, 0)) as answers, window() as found:
        for _ in range(arguments.long_prompts):
            await stream(server.port, Ask(long.ids(arguments.long), 1), longs)
    await _until_idle(server)
    figures = found[0].figures(answers)
    figures["long_first_ms"] = 1e3 * sum(each.first_s for each in longs) / len(longs)
    return _row(f"short + {arguments.long:,}", num_clients, 0, figures)


async def _until_idle(server: Server) -> None:
    """Clients that were cut off are noticed by the server a little later."""
    while (await asyncio.to_thread(server.metrics))["retnet_requests_running"]:
        await asyncio.sleep(0.05)


def _row(load: str, num_clients: int, context: int, figures: Row, contender: str = OURS) -> Row:
    known = {"kind": "load", "contender": contender, "load": load}
    return {**known, "clients": num_clients, "context": context, **figures}


async def prefix_rows(
    server: Server, config: ModelConfig, arguments: argparse.Namespace
) -> list[Row]:
    """The time to the first token of long prompts that are new, and of others that begin so."""
    asks = Asks(config, 2)
    befores = [asks.ids(arguments.long) for _ in range(arguments.long_prompts)]
    cold, repeated = list[Answer](), list[Answer]()
    for before in befores:
        await stream(server.port, Ask([*before, *asks.ids(16)], 1), cold)
    for before in befores:
        for _ in range(3):
            await stream(server.port, Ask([*before, *asks.ids(16)], 1), repeated)
    return [
        {"kind": "prefix", "contender": OURS, "what": what, "first_ms": _median_first_ms(answers)}
        for what, answers in (("new", cold), ("its beginning known", repeated))
    ]


def _median_first_ms(answers: Sequence[Answer]) -> float:
    return 1e3 * sorted(answer.first_s for answer in answers)[len(answers) // 2]


async def memory_rows(
    server: Server, config: ModelConfig, arguments: argparse.Namespace
) -> list[Row]:
    """How far the server's memory rises while it reads a context and writes after it."""
    asks = Asks(config, 3)
    await stream(server.port, Ask(asks.ids(300), 8), [])  # its buffers are there now
    rows, state_bytes = [], await asyncio.to_thread(server.state_bytes)
    before = server.rss_bytes
    for context in arguments.memory_contexts:
        peak = before
        asking = asyncio.create_task(stream(server.port, Ask(asks.ids(context), 16), []))
        while not asking.done():
            peak = max(peak, server.rss_bytes)
            await asyncio.sleep(0.02)
        await asking
        figures = {"rise_mb": (peak - before) / 1e6, "state_mb": state_bytes / 1e6}
        row = {"kind": "memory", "contender": OURS, "context": context, **figures}
        rows.append({**row, "rss_mb": peak / 1e6})
    return rows


def rival_rows(config: ModelConfig, arguments: argparse.Namespace, console: Console) -> list[Row]:
    """All of the Transformer's."""
    torch.set_num_threads(arguments.threads)
    model = generating.llama(config, torch.bfloat16)
    rows = []
    for number in arguments.clients:
        figures = generating.load_figures(model, number, Asks(config, 0), arguments.seconds, 256)
        rows.append(_row("short", number, 0, figures, generating.CONTINUOUS))
    for context in arguments.contexts:
        for number in context_clients(arguments):
            figures = generating.context_figures(model, number, context, arguments.steps)
            rows.append(_row("short", number, context, figures, generating.GENERATE))
    console.print(table("the rival", rows, LOAD_COLUMNS))
    first_ms = 1e3 * generating.first_token_s(model, arguments.long)
    prefix = {"kind": "prefix", "contender": generating.GENERATE, "what": "new"}
    rows.append({**prefix, "first_ms": first_ms})
    console.print(table("", rows[-1:], PREFIX_COLUMNS))
    memory = [
        {"kind": "memory", "contender": generating.GENERATE, "context": context}
        | in_fresh_process(partial(generating.memory_figures, config, context))
        for context in arguments.memory_contexts
    ]
    console.print(table("its memory", memory, MEMORY_COLUMNS))
    return [*rows, *memory]


def ratios(rows: Sequence[Row], arguments: argparse.Namespace) -> list[Ratio]:
    """What this project promises of serving; None where a side was not measured."""

    def find(column: str, **wanted: Any) -> float | None:
        return next((row[column] for row in rows if wanted.items() <= row.items()), None)

    def speed(contender: str, number: int, context: int) -> float | None:
        known = {"load": "short", "contender": contender}
        return find("tokens_per_s", **known, clients=number, context=context)

    def beside(rival: str, number: int, context: int, at_least: float | None = None) -> Ratio:
        value = quotient(speed(OURS, number, context), speed(rival, number, context))
        return Ratio(
            f"tokens/s, {number} clients, context {context:,}: ours / {rival}", value, at_least
        )

    cold = find("first_ms", contender=OURS, what="new")
    known = find("first_ms", contender=OURS, what="its beginning known")
    mixed = next((row for row in rows if "long_first_ms" in row), {})
    stall = quotient(mixed.get("gap_max_ms"), cold)
    many = quotient(speed(OURS, 16, 0), speed(OURS, 1, 0))
    gaps = [find("gap_ms", load="short", contender=OURS, clients=n, context=0) for n in (16, 1)]
    writing = None if None in gaps else quotient(16 / gaps[0], 1 / gaps[1])
    rises = [row["rise_mb"] for row in rows if row["kind"] == "memory" and row["contender"] == OURS]
    return [
        Ratio("tokens/s, ours: 16 clients / 1", many, at_least=8),
        Ratio("the same by median gaps, between prompts that are read", writing, at_least=8),
        Ratio(f"first token, {arguments.long:,} tokens: new / known", quotient(cold, known), 20),
        Ratio(
            f"longest gap beside {arguments.long:,} tokens / reading them alone",
            stall,
            at_most=0.25,
        ),
        Ratio("memory, ours, MB: longest context - shortest", rises[-1] - rises[0], at_most=20),
        *(beside(generating.CONTINUOUS, number, 0) for number in arguments.clients),
        *(
            beside(generating.GENERATE, number, context)
            for context in arguments.contexts
            for number in context_clients(arguments)
        ),
    ]


def _missing() -> list[str]:
    absent = "transformers is missing: its rows are left out"
    return [] if find_spec("transformers") else [absent]


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ("fastapi", "uvicorn", *(("transformers",) if find_spec("transformers") else ()))
    return {name: version(name) for name in names}


if __name__ == "__main__":
    sys.exit(main(parser(), run, check))
