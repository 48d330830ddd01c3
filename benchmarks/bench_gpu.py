"""What a GPU makes of retention, in ten minutes: is it right, how fast is it beside its rivals.

    python benchmarks/bench_gpu.py                         # ten minutes on a GPU
    python benchmarks/bench_gpu.py --sections gate ops     # some of it
    python benchmarks/bench_gpu.py --toy                   # seconds, on a CPU too: that it runs

Needs torch and, for our kernels, triton; compares with fla-core where that is installed. Every row
is a line of JSON as soon as it is measured, in benchmarks/results/gpu-NAME.jsonl too; each section
has its own deadline, after which the rest of it is left out. At the end it says what holds. A
record whose gate is passed makes `backend="auto"` take the kernels on that kind of chip: see
`python benchmarks/verified.py`.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from gpu_frame import Bench, Row
from gpu_models import decoding, training
from gpu_ops import ceilings, gate, ops, warm

SECTIONS: dict[str, tuple[Callable[[Bench], Iterable[Row]], float]] = {
    # Each yields its rows as they come. Seconds it may take, of the ten minutes.
    "ceilings": (ceilings, 20),
    "warm": (warm, 60),
    "gate": (gate, 80),
    "ops": (ops, 140),
    "training": (training, 150),
    "decoding": (decoding, 120),
}
RESULTS = Path(__file__).parent / "results"
# The paper's figures for 8,192 tokens (tables 4, and figures 1 and 6): on A100s, so only as ratios.
PAPER = {
    "training 1.3b: RetNet / Transformer with flash attention": 1.147,
    "training 6.7b: RetNet / Transformer with flash attention": 1.076,
    "training 13b: RetNet / Transformer with flash attention": 1.088,
    "decoding 6.7b, throughput: RetNet / Transformer": 8.4,
    "decoding 6.7b, memory: Transformer / RetNet": 3.4,
    "decoding 6.7b, latency: Transformer / RetNet": 15.6,
}


def parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    add("--toy", action="store_true", help="tiny sizes")
    add("--minutes", type=float, default=10, help="for all sections together")
    add(
        "--save",
        metavar="FILE",
        help="by default benchmarks/results/gpu-NAME.jsonl; toys aren't kept",
    )
    add("--warm", metavar="KxV", help=argparse.SUPPRESS)  # a process that fills Triton's cache
    return parser


def main() -> int:
    """Measure, show and keep; 1 where the kernels are wrong."""
    arguments = parser().parse_args()
    device = torch.device(arguments.device)
    if device.type == "cpu" and not arguments.toy:
        print("no GPU here; --toy shows that it runs", file=sys.stderr)
        return 2
    bench = Bench(device, toy=arguments.toy)
    if arguments.warm:
        bench.warm(*map(int, arguments.warm.split("x")))
        return 0
    path = None if arguments.toy else _path(arguments.save, bench)
    if arguments.save:
        path = Path(arguments.save)
    rows: list[Row] = []
    for row in measured(bench, arguments.sections, arguments.minutes):
        line = json.dumps(row)
        print(line, flush=True)
        if path is not None:
            with path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        rows.append(row)
    for line in conclusions(rows):
        print(line)
    return (
        1 if any(row.get("passed") is False and "triton" in row["contender"] for row in rows) else 0
    )


def measured(bench: Bench, sections: list[str], minutes: float) -> Iterator[Row]:
    """The rows of the sections, each until its deadline, with what went wrong."""
    yield {"section": "machine", **bench.facts()}
    scale = 60 * minutes / sum(seconds for _, seconds in SECTIONS.values())
    for name in sections:
        section, seconds = SECTIONS[name]
        start = time.monotonic()
        bench.deadline = start + seconds * scale
        try:
            for row in section(bench):
                yield {"section": name, **row}
        except Exception as error:
            yield {"section": name, "error": f"{type(error).__name__}: {error}"[:500]}
        bench.free()
        yield {
            "section": name,
            "seconds": round(time.monotonic() - start, 1),
            "was_cut_short": bench.is_late(),
        }


def conclusions(rows: list[Row]) -> Iterator[str]:
    """What holds of what this project wants to show, in words; nothing where it wasn't measured."""
    gates = [row for row in rows if "passed" in row]
    for contender in dict.fromkeys(row["contender"] for row in gates):
        own = [row for row in gates if row["contender"] == contender]
        wrong = [row for row in own if not row["passed"]]
        yield f"{contender}: {len(own) - len(wrong)} of {len(own)} checks passed"

    def of(key: str, **wanted: Any) -> float | None:
        found = [row[key] for row in rows if wanted.items() <= row.items() and row.get(key)]
        return found[0] if found else None

    def ratio(
        text: str, above: float | None, below: float | None, least: float | None
    ) -> str | None:
        if above is None or below is None:
            return None
        goal = "" if least is None else f" (at least {least}: {above / below >= least})"
        paper = f"; the paper {PAPER[text]}" if text in PAPER else ""
        return f"{text}: {above / below:.2f}{goal}{paper}"

    both = {"section": "ops", "pass": "forward+backward", "key_size": 256, "value_size": 512}
    ours = {**both, "contender": "ours triton"}
    lines = [
        ratio(
            "ops 256/512, 32k tokens: fla / ours",
            of("ms", **{**both, "contender": "fla", "tokens": 32_768}),
            of("ms", **ours, tokens=32_768),
            2,
        ),
        *(
            ratio(
                f"ops 256/512, 8k tokens: {rival} / ours",
                of(
                    "ms",
                    section="ops",
                    contender=rival,
                    tokens=8_192,
                    **{"pass": "forward+backward"},
                ),
                of("ms", **ours, tokens=8_192),
                2,
            )
            for rival in ("sdpa flash", "sdpa cudnn")
        ),
        ratio(
            "ops 256/512, 32k tokens: floor / ours",
            of("floor_ms", **ours, tokens=32_768),
            of("ms", **ours, tokens=32_768),
            0.6,
        ),
    ]
    for size, least in (("1.3b", 1.15), ("6.7b", None), ("13b", None)):
        step = {"section": "training", "model": size, "tokens": 8_192}
        lines.append(
            ratio(
                f"training {size}: RetNet / Transformer with flash attention",
                of("tokens_per_s", **step, contender="RetNet triton"),
                of("tokens_per_s", **step, contender="Transformer flash"),
                least,
            )
        )
    step = {"section": "decoding", "model": "6.7b", "context": 8_192}
    for kind, above, below, key, least in (
        ("throughput: RetNet / Transformer", "RetNet", "Transformer", "tokens_per_s", 8.4),
        ("memory: Transformer / RetNet", "Transformer", "RetNet", "peak_gb", 1 / 0.3),
        ("latency: Transformer / RetNet", "Transformer", "RetNet", "ms", None),
    ):
        batch_size = {"batch_size": 1 if kind.startswith("latency") else 16}
        lines.append(
            ratio(
                f"decoding 6.7b, {kind}",
                of(key, **step, **batch_size, contender=above),
                of(key, **step, **batch_size, contender=below),
                least,
            )
        )
    yield from (line for line in lines if line is not None)


def _path(name: str | None, bench: Bench) -> Path:
    """Where the record goes: a name of its own."""
    if name:
        return Path(name)
    stem = f"gpu-{bench.name}"
    for number in range(1, 1000):
        path = RESULTS / (f"{stem}.jsonl" if number == 1 else f"{stem}-{number}.jsonl")
        if not path.exists():
            return path
    raise FileExistsError(f"{stem}-1 to -999 exist in {RESULTS}")


if __name__ == "__main__":
    sys.exit(main())
