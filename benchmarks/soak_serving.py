"""A server among clients of all kinds for minutes: nothing may break, be lost or grow.

    python benchmarks/soak_serving.py                      # ten minutes
    python benchmarks/soak_serving.py --minutes 60 --save some-name
    python benchmarks/soak_serving.py --quick              # twenty seconds

Exits with 1 where something was wrong. The last line of the output is the whole result as JSON.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import torch
from frame import Machine, main, parser_with_common_options, require_positive
from rich.console import Console
from served import Server, save_random_model, serving
from talk import GOING_ON, KEY, Findings, texts_of, web
from visitors import KNOWN, Visitor

from retnet.bench import Ratio, Report, Row, table
from retnet.config import ModelConfig

TEMPLATE = (
    "{% for message in messages %}{{ '[' + message['role'] + '] ' + message['content'] }}"
    "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}{{ '[assistant] ' }}{% endif %}"
)
QUEUE = 48
FLAGS = (
    *("--dtype", "fp32", "--queue", str(QUEUE), "--max_body_mb", "0.2", "--body_timeout_s", "5"),
    *("--timeout_s", "240", "--max_prompt_tokens", "16000", "--max_new_tokens", "4096"),
    *("--prefix_cache_mb", "8", "--session_mb", "4", "--prefill_chunk", "128"),
)
# What it tells of itself when it starts, and of bytes that are no HTTP.
EXPECTED_LINES = ("retnet: ", "WARNING:  Invalid HTTP request received.")
COLUMNS = {
    "elapsed_s": "s",
    "rss_mb": "memory MB",
    "num_files": "files",
    "num_threads": "threads",
    "slots_used": "slots used",
    "waiting": "waiting",
    "num_sessions": "sessions",
    "num_answers": "answers",
    "num_failures": "failures",
}
NOTES = (
    "memory: of the server's process. growth: the most in the second half of the time over the "
    "most in the quarter before; slope: of the line that fits the second half best.",
)


def parser() -> argparse.ArgumentParser:
    """The options."""
    parser = parser_with_common_options(__doc__)
    add = parser.add_argument
    add("--minutes", type=float, default=10)
    add("--clients", type=int, default=64)
    add("--slots", type=int, default=8)
    add("--seed", type=int, default=0, help="of all that visitors choose")
    return parser


def check(arguments: argparse.Namespace) -> None:
    """ValueError for what cannot be run; and the sizes of --quick."""
    if arguments.quick:
        arguments.minutes, arguments.clients = 20 / 60, 16
    require_positive(arguments, "clients", "slots")
    if not arguments.minutes > 0:
        raise ValueError(f"--minutes must be above 0, got {arguments.minutes}")


def run(arguments: argparse.Namespace, machine: Machine, console: Console) -> Report:
    """Serve, let all in, watch, and look at what is left."""
    config = ModelConfig(vocab_size=259, d_model=64, num_layers=2, num_heads=2)
    with tempfile.TemporaryDirectory() as folder:
        model, sessions = Path(folder) / "model", Path(folder) / "sessions"
        save_random_model(model, config, torch.float32)
        (model / "chat_template.jinja").write_text(TEMPLATE)
        flags = (*FLAGS, "--slots", str(arguments.slots), "--session_dir", str(sessions))
        with serving(model, *flags, threads=arguments.threads, key=KEY) as server:
            findings, rows = asyncio.run(soak(server, arguments, console))
            exit_code = server.stop()
        log = [line for line in server.lines if not line.startswith(EXPECTED_LINES)]
        with serving(model, *flags, threads=arguments.threads, key=KEY) as server:
            asyncio.run(require_sessions(server, findings, "after a restart"))
    if exit_code:
        findings.failures.append(f"the server's exit code is {exit_code}")
    findings.failures += [f"the server's log: {line}"[:500] for line in log]
    for failure in findings.failures[:20]:
        console.print(failure, style="red", markup=False)
    settings = {
        "model": config.to_dict(),
        "command": sys.argv,
        "statuses": {str(status): count for status, count in sorted(findings.statuses.items())},
        "deeds": dict(findings.deeds),
        "failures": findings.failures[:100],
        **{name: getattr(arguments, name) for name in ("minutes", "clients", "slots", "seed")},
        **machine.limits(),
    }
    found = ratios(rows, findings, is_long=arguments.minutes >= 5)
    return Report("soak", machine.facts, settings, rows, found, NOTES)


async def soak(
    server: Server, arguments: argparse.Namespace, console: Console
) -> tuple[Findings, list[Row]]:
    """What the visitors found, and rows of what the server took meanwhile."""
    findings = Findings()
    async with web(server.port) as client:
        findings.known = [await _known(client, body) for body in KNOWN]
        visitors = [
            Visitor(client, server.port, findings, number, arguments.seed)
            for number in range(arguments.clients)
        ]
        staying = asyncio.gather(*(visitor.stay() for visitor in visitors))
        try:
            rows = await watch(server, findings, arguments, console)
            findings.is_over = True
            await asyncio.wait_for(staying, 300)
        finally:
            staying.cancel()
    await require_nothing_left(server, findings, arguments.slots)
    rows.append(sample(server, findings, 60 * arguments.minutes))
    console.print(table("afterwards", rows[-1:], COLUMNS))
    await require_sessions(server, findings, "at the end")
    return findings, rows


async def _known(client: httpx.AsyncClient, body: dict[str, object]) -> dict[int, str]:
    reply = await client.post(GOING_ON, json=body)
    return texts_of([reply.raise_for_status().json()])


async def watch(
    server: Server, findings: Findings, arguments: argparse.Namespace, console: Console
) -> list[Row]:
    """A row every ten seconds."""
    rows: list[Row] = []
    start_s, every_s = time.perf_counter(), 2 if arguments.quick else 10
    for number in range(1, round(60 * arguments.minutes / every_s) + 1):
        await asyncio.sleep(start_s + number * every_s - time.perf_counter())
        elapsed_s = time.perf_counter() - start_s
        rows.append(await asyncio.to_thread(sample, server, findings, elapsed_s))
        words = [f"{heading} {rows[-1][key]:,.0f}" for key, heading in COLUMNS.items()]
        console.print(", ".join(words))
        if server.has_failed:
            findings.failures.append("the server has ended, or told of an exception")
            break
    return rows


def sample(server: Server, findings: Findings, elapsed_s: float) -> Row:
    """What the server takes now."""
    metrics = server.metrics()
    return {
        "kind": "sample",
        "elapsed_s": elapsed_s,
        "rss_mb": server.rss_bytes / 1e6,
        "num_files": server.num_files,
        "num_threads": server.num_threads,
        "slots_used": int(metrics["retnet_slots_used"]),
        "waiting": int(metrics["retnet_requests_waiting"]),
        "num_sessions": int(metrics["retnet_sessions"]),
        "num_answers": findings.statuses.total(),
        "num_failures": len(findings.failures),
    }


async def require_nothing_left(server: Server, findings: Findings, num_slots: int) -> None:
    """Every slot is free, and every slot can be used."""
    if not await _until(server, "retnet_slots_used", 0, 30):
        findings.failures.append(f"slots are still used: {server.metrics()}")
    async with web(server.port) as client:
        body = {"prompt": "a", "max_tokens": 2000, "ignore_eos": True, "temperature": 0}
        asking = asyncio.gather(*(client.post(GOING_ON, json=body) for _ in range(num_slots)))
        if not await _until(server, "retnet_slots_used", num_slots, 30):
            findings.failures.append(f"not all {num_slots} slots can be used")
        replies = await asking
    if any(reply.status_code != 200 for reply in replies):
        findings.failures.append(f"at the end: {[reply.status_code for reply in replies]}")
    elif len({reply.json()["choices"][0]["text"] for reply in replies}) != 1:
        findings.failures.append("the same request gave different texts")
    if not await _until(server, "retnet_slots_used", 0, 30):
        findings.failures.append(f"slots are still used: {server.metrics()}")


async def _until(server: Server, name: str, value: float, patience_s: float) -> bool:
    deadline = time.perf_counter() + patience_s
    while (await asyncio.to_thread(server.metrics))[name] != value:
        if time.perf_counter() > deadline:
            return False
        await asyncio.sleep(0.01)
    return True


async def require_sessions(server: Server, findings: Findings, when: str) -> None:
    """Every session is there, with the text that it had, and no other."""
    async with web(server.port) as client:
        told = (await client.get("/v1/sessions")).raise_for_status().json()["data"]
    there = {each["id"]: each["num_tokens"] for each in told}
    if there != findings.sessions:
        differs = dict(there.items() ^ findings.sessions.items())
        findings.failures.append(f"{when}, sessions are not as they were left: {differs}"[:500])


def ratios(rows: Sequence[Row], findings: Findings, *, is_long: bool) -> list[Ratio]:
    """What may not be. is_long: whether there was time enough to tell what grows."""
    *during, after = rows
    half = len(during) // 2
    earlier, later = during[half // 2 : half], during[half:]
    memory = [row["rss_mb"] for row in later]
    growth = max(memory) / max((row["rss_mb"] for row in earlier), default=memory[0])
    times = torch.tensor([row["elapsed_s"] for row in later], dtype=torch.float64)
    slope = _slope(times / 60, torch.tensor(memory, dtype=torch.float64))
    num_broken = sum(count for status, count in findings.statuses.items() if status >= 500)
    threads = max(row["num_threads"] for row in later) - max(
        (row["num_threads"] for row in earlier), default=0
    )
    return [
        Ratio("failures", len(findings.failures), at_most=0),
        Ratio("answers 5xx", num_broken, at_most=0),
        Ratio("slots used afterwards", after["slots_used"], at_most=0),
        Ratio("files open afterwards", after["num_files"], at_most=40),
        Ratio("memory growth", growth, at_most=1.03 if is_long else None),
        Ratio("memory slope, MB a minute", slope, at_most=1 if is_long else None),
        Ratio("threads more than before", threads, at_most=0 if is_long else None),
    ]


def _slope(x: torch.Tensor, y: torch.Tensor) -> float:
    """Of the straight line that fits best."""
    x = x - x.mean()
    return float((x * y).sum() / (x * x).sum().clamp(min=1e-9))


if __name__ == "__main__":
    sys.exit(main(parser(), run, check, must_meet_goals=True))
