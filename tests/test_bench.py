"""Measuring, reporting, the rival Transformer, and that the benchmarks run."""

import json
import operator
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch.nn.functional import cosine_similarity, scaled_dot_product_attention

from retnet.bench import (
    FORM_COLUMNS,
    MODEL_COLUMNS,
    Ratio,
    Report,
    form_report,
    model_report,
    ratio_table,
    table,
)
from retnet.config import ModelConfig, preset
from retnet.measure import (
    Timing,
    in_fresh_process,
    machine_facts,
    measure,
    peak_rise_bytes,
    threads_of_others,
)
from retnet.ops import retention_chunkwise, retention_parallel

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmarks' modules can be imported, as from a script beside them."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_measure_alternates() -> None:
    """Everybody has one turn a round, and the first place goes round."""
    turns: list[str] = []
    functions = {name: partial(turns.append, name) for name in "abc"}
    timings = measure(functions, rounds=3, warmup=1)
    rounds = ["".join(turns[i : i + 3]) for i in range(0, len(turns), 3)]
    assert rounds == ["cab", "abc", "bca", "cab"]
    assert [len(timing.seconds) for timing in timings.values()] == [3, 3, 3]


def test_measure_times_each_function() -> None:
    """The time belongs to the function that took it."""
    tensor = torch.randn(400, 400)
    timings = measure({"nothing": lambda: None, "product": lambda: tensor @ tensor}, rounds=5)
    assert timings["product"].min_s > 10 * timings["nothing"].median_s


def test_timing_is_the_median() -> None:
    timing = Timing((3.0, 1.0, 5.0, 2.0, 100.0))
    assert (timing.median_s, timing.min_s, timing.max_s) == (3, 1, 100)
    assert timing.divided_by(2).median_s == 1.5


@pytest.mark.parametrize(("names", "rounds"), [("", 3), ("a", 0)])
def test_measure_needs_something_to_do(names: str, rounds: int) -> None:
    with pytest.raises(ValueError, match="rounds >= 1 and a function"):
        measure({name: lambda: None for name in names}, rounds)


def test_peak_memory_is_that_of_the_call() -> None:
    """128 MiB that a call makes and returns are seen, and not much else."""
    call = partial(operator.mul, b"x", 2**27)
    assert 1 <= in_fresh_process(peak_rise_bytes, call) / 2**27 < 1.1


def test_machine_facts_are_plain_values() -> None:
    facts = json.loads(json.dumps(machine_facts("tuned")))
    assert facts["torch"] == torch.__version__
    assert facts["allocator"] == "tuned"
    assert facts["threads"] == torch.get_num_threads()
    assert facts["memory_bytes"] > 2**28


def test_others_at_work_are_noticed() -> None:
    """A process that spins is seen, where the kernel counts what runs."""
    command = [sys.executable, "-c", "while True: pass"]
    with subprocess.Popen(command) as spinning:
        busy = threads_of_others()
        spinning.kill()
    assert busy is None or busy > 0.5


def test_ratio_against_its_goal() -> None:
    assert Ratio("speed", 5.1, at_least=5).met is True
    assert Ratio("time", 1.3, at_most=1.2).met is False
    assert Ratio("missing", None, at_least=5).met is None
    assert Ratio("no goal", 3.0).met is None


def test_report_is_one_line_and_one_file(tmp_path: Path) -> None:
    """A result is never overwritten, and its name is no way out of the folder."""
    rows = [{"contender": "ours", "median_ms": 1.5, "peak_mb": None}]
    report = Report("x", machine_facts(), {"rounds": 1}, rows, [Ratio("speed", 5.1, at_least=5)])
    assert "\n" not in report.json_line()
    saved = json.loads(report.save(tmp_path / "new", "first").read_text())
    assert saved == json.loads(report.json_line())
    assert saved["ratios"][0]["met"] is True
    with pytest.raises(ValueError, match="exists already"):
        report.save(tmp_path / "new", "first")
    with pytest.raises(ValueError, match="plain file name"):
        report.save(tmp_path / "new", "../second")


def shown(renderable: object) -> str:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_tables_show_what_is_missing() -> None:
    text = shown(
        table("times", [{"a": 1234.5, "b": None, "c": "x"}], {"a": "A", "b": "B", "c": "C"})
    )
    assert all(word in text for word in ("times", "1,234", " - ", "x"))
    assert "no" in shown(ratio_table([Ratio("speed", 1.0, at_least=5)]))


def test_quick_figures() -> None:
    """What `retnet bench` shows: every form, and a model's two speeds."""
    forms = form_report(num_tokens=64, rounds=1)
    done = {(row["form"], row["pass"]) for row in forms.rows}
    assert done == {
        ("parallel", "forward"),
        ("recurrent", "forward"),
        ("chunkwise", "forward"),
        ("parallel", "forward+backward"),
        ("chunkwise", "forward+backward"),
    }
    config = ModelConfig(d_model=32, num_layers=2, num_heads=2)
    model = model_report(config, num_tokens=32, steps=2, rounds=1)
    assert [row["what"] for row in model.rows] == ["prefill", "decode"]
    assert all(row["state_bytes"] == 4 * config.state_numbers for row in model.rows)
    for report, columns in ((forms, FORM_COLUMNS), (model, MODEL_COLUMNS)):
        assert json.loads(report.json_line())["rows"] == report.rows
        assert shown(table("", report.rows, columns))


@pytest.mark.usefixtures("benchmarks")
def test_transformer_decodes_as_it_reads(rng: torch.Generator) -> None:
    """The rival is right: its cache, in pieces of any length, gives what one pass gives."""
    from transformer import KeyValueCache, Transformer, TransformerConfig

    config = TransformerConfig(vocab_size=50, d_model=48, num_layers=2, num_heads=4)
    model = Transformer(config).eval()
    tokens = torch.randint(50, (2, 20), generator=rng)
    with torch.no_grad():
        whole = KeyValueCache.allocate(config, 2, 20, torch.float32)
        expected = model.logits(model.features(tokens, whole))
        cache = KeyValueCache.allocate(config, 2, 25, torch.float32)
        ends = [4, 9, *range(10, 21)]
        for start, end in zip([0, *ends], ends, strict=False):
            logits = model(tokens[:, start:end], cache)
            torch.testing.assert_close(logits, expected[:, end - 1], atol=1e-5, rtol=1e-5)
        assert cache.num_bytes == 2 * 2 * 2 * 20 * 48 * 4
        with pytest.raises(ValueError, match="room for 25 tokens"):
            model(tokens[:, :6], cache)


@pytest.mark.usefixtures("benchmarks")
def test_transformer_has_the_parameters_of_the_retnet() -> None:
    from transformer import Transformer, TransformerConfig

    from retnet.model import RetNet

    config = preset("base", vocab_size=16384, num_heads=12)
    with torch.device("meta"):
        ours = RetNet(config)
        rival = Transformer(
            TransformerConfig(vocab_size=16384, d_model=768, num_layers=12, num_heads=12)
        )
    sizes = [sum(weight.numel() for weight in model.parameters()) for model in (ours, rival)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.02)


@pytest.mark.usefixtures("benchmarks")
def test_flops_are_counted() -> None:
    """Ours by hand, the fused attention by its formula, each under the dtype it multiplies in."""
    from flops import matmul_flops

    B, T, H, K, V = 2, 8, 3, 4, 6
    q, k, v = (torch.randn(B, T, H, size, requires_grad=True) for size in (K, K, V))
    log_decay = torch.full((H,), -0.1)
    count = matmul_flops(lambda: retention_parallel(q, k, v, log_decay))
    assert count == {torch.float32: 2 * B * H * (T * T * K + T * T * V + 2 * T * K * V)}

    attended = [torch.randn(B, H, T, K, requires_grad=True) for _ in range(3)]
    attend = partial(scaled_dot_product_attention, *attended, is_causal=True)
    assert sum(matmul_flops(attend).values()) == 2 * B * H * T * T * K
    assert sum(matmul_flops(lambda: attend().sum().backward()).values()) == 7 * B * H * T * T * K


@pytest.mark.skipif(find_spec("torchscale") is None, reason="torchscale is not installed")
@pytest.mark.usefixtures("benchmarks")
@pytest.mark.filterwarnings("ignore")  # of packages that it imports
def test_torchscale_computes_the_same_thing() -> None:
    """Its outputs are ours but for one factor a token and head, which the head norm removes."""
    from contenders import Shape, contenders

    shape = Shape(batch_size=2, num_tokens=1024, num_heads=3, key_size=8, value_size=16)
    rival = next(c for c in contenders() if c.name == "torchscale chunk 512")
    operation = rival.build(shape, torch.float32)
    theirs = operation.forward().reshape(2, 1024, 3, 16)
    q, k, v = (x.detach() for x in operation.inputs)
    log_decay = torch.log1p(-(2.0 ** -torch.arange(5, 8)))
    q, k = q.transpose(1, 2), k.transpose(1, 2)
    ours, _ = retention_chunkwise(q, k, v.view(2, 1024, 3, 16), log_decay)
    assert cosine_similarity(ours, theirs, dim=-1).min() > 1 - 1e-4


def run_script(name: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / name), "--threads", "1", *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=BENCHMARKS.parent)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("bench_retention.py", {"ours chunkwise torch", "ours parallel", "ours recurrent"}),
        ("bench_decoding.py", {"ours", "transformer, cache in place"}),
        ("bench_training.py", {"ours", "llama"}),
    ],
)
def test_benchmark_runs(script: str, expected: set[str]) -> None:
    """The quick version ends with one line of JSON that has every row."""
    done = run_script(script, "--quick")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert expected <= {row["contender"] for row in result["rows"]}
    assert all(row["median_ms"] > 0 for row in result["rows"])
    assert set(result["settings"]["gemm_flops_per_s"]) == {"fp32", "bf16"}
    assert len(result["ratios"]) >= 8


@pytest.mark.slow
def test_benchmark_of_generate_runs() -> None:
    done = run_script("bench_hf.py", "--quick")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    contenders = {row["contender"] for row in result["rows"] if row["kind"] == "time"}
    assert contenders == {"retnet.generate", "RetNetForCausalLM.generate"}
    assert len({row["state_bytes"] for row in result["rows"] if row["kind"] == "memory"}) == 1
    assert all(ratio["value"] is not None for ratio in result["ratios"])


@pytest.mark.slow
def test_benchmark_of_serving_runs() -> None:
    """A server and its clients, and what transformers does with the same load."""
    done = run_script("bench_serving.py", "--quick")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    loads = [row for row in result["rows"] if row["kind"] == "load"]
    assert all(row["tokens_per_s"] > 0 for row in loads)
    ours = [row for row in loads if row["contender"] == "retnet serve"]
    assert {(row["clients"], row["context"]) for row in ours} == {
        (1, 0),
        (4, 0),
        (1, 512),
        (4, 512),
    }
    assert ours[-1]["long_first_ms"] > 0
    assert all(row["gap_ms"] > 0 and row["client_cpu_percent"] > 0 for row in ours)
    memory = [row for row in result["rows"] if row["kind"] == "memory"]
    states = [row["state_mb"] for row in memory if row["contender"] == "retnet serve"]
    caches = [row["state_mb"] for row in memory if row["contender"] != "retnet serve"]
    assert states[0] == states[1] and caches[1] == 4 * caches[0]


@pytest.mark.slow
def test_a_server_among_clients_of_all_kinds() -> None:
    """For twenty seconds: nothing breaks, and nothing is lost."""
    done = run_script("soak_serving.py", "--quick")
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["settings"]["failures"] == []
    assert result["rows"][-1]["slots_used"] == 0
    assert result["settings"]["statuses"]["200"] > 50
    assert {"401", "404"} < set(result["settings"]["statuses"])


@pytest.mark.slow
def test_benchmark_of_gpus_runs() -> None:
    """At toy size, with what a CPU has; each row is a line as soon as it is there."""
    command = [sys.executable, str(BENCHMARKS / "bench_gpu.py"), "--toy", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    rows = [json.loads(line) for line in lines if line.startswith("{")]
    assert not [row for row in rows if "error" in row]
    sections = {row["section"] for row in rows}
    assert sections == {"machine", "ceilings", "warm", "gate", "ops", "training", "decoding"}
    gate = [row for row in rows if "passed" in row]
    assert gate and all(row["passed"] for row in gate)
    assert "ours torch: 6 of 6 checks passed" in lines


@pytest.mark.usefixtures("benchmarks")
def test_conclusions_of_gpus() -> None:
    """What is promised is said to hold, or not to, where it was measured."""
    from bench_gpu import conclusions

    op = {"section": "ops", "pass": "forward+backward", "key_size": 256, "value_size": 512}
    rows = [
        {**op, "contender": "ours triton", "tokens": 32_768, "ms": 2.0, "floor_ms": 1.0},
        {**op, "contender": "fla", "tokens": 32_768, "ms": 5.0},
        {"section": "gate", "contender": "fla", "passed": False},
    ]
    assert list(conclusions(rows)) == [
        "fla: 0 of 1 checks passed",
        "ops 256/512, 32k tokens: fla / ours: 2.50 (at least 2: True)",
        "ops 256/512, 32k tokens: floor / ours: 0.50 (at least 0.6: False)",
    ]


@pytest.mark.usefixtures("benchmarks")
def test_auto_takes_kernels_where_records_say_so(tmp_path: Path) -> None:
    """The package repeats the records; a record counts where all of its gate was passed."""
    from verified import RESULTS, VERIFIED, verified

    assert json.loads(VERIFIED.read_text()) == verified(RESULTS.glob("gpu-*.jsonl"))

    def record(name: str, *, toy: bool = False, cut: bool = False, passed: bool = True) -> Path:
        machine = {"arch": "sm_90", "toy": toy, "versions": {"triton": "3.6.0"}}
        rows = [
            {"section": "machine", **machine},
            {"section": "gate", "contender": "ours triton", "passed": True},
            {"section": "gate", "contender": "ours triton", "passed": passed},
            {"section": "gate", "was_cut_short": cut},
        ]
        path = tmp_path / name
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return path

    assert verified([record("good")]) == [["sm_90", "3.6.0"]]
    bad = [record("toy", toy=True), record("cut", cut=True), record("wrong", passed=False)]
    assert verified(bad) == []


@pytest.mark.usefixtures("benchmarks")
def test_a_load_is_looked_at_in_its_time() -> None:
    """Tokens, first tokens and gaps count where they end within the window."""
    from clients import Answer, Window

    answers = [Answer(0.0, [0.5, 1.5, 2.0]), Answer(1.0, [1.25, 3.5]), Answer(1.5)]
    figures = Window(1.0, 3.0, client_cpu_s=0.5).figures(answers)
    assert figures["tokens_per_s"] == 1.5 and figures["num_requests"] == 1
    assert figures["first_ms"] == 250
    assert (figures["gap_ms"], figures["gap_max_ms"]) == (1000, 1000)
    assert figures["client_cpu_percent"] == 25
    assert Window(5.0, 6.0, client_cpu_s=0.0).figures(answers)["gap_p95_ms"] is None


@pytest.mark.usefixtures("benchmarks")
def test_every_token_of_a_random_model_has_a_text(tmp_path: Path) -> None:
    from served import save_random_model

    from retnet.data.pretrained import load_any_tokenizer

    config = ModelConfig(vocab_size=4000, d_model=32, num_layers=1, num_heads=1)
    save_random_model(tmp_path, config, torch.bfloat16)
    tokenizer = load_any_tokenizer(tmp_path, vocab_size=4000)
    texts = [tokenizer.decode_bytes([token]) for token in range(4000)]
    assert len(set(texts)) == 4000 and {len(text) for text in texts} == {1, 2, 3}


@pytest.mark.parametrize(
    ("script", "options", "message"),
    [
        ("bench_serving.py", ["--clients", "0"], "--clients must be at least 1"),
        ("bench_serving.py", ["--seconds", "0"], "--seconds must be above 0"),
        ("soak_serving.py", ["--minutes", "0"], "--minutes must be above 0"),
        ("bench_retention.py", ["--rounds", "0"], "--rounds must be at least 1"),
        ("bench_retention.py", ["--lengths", "512", "-1"], "--lengths must be at least 1"),
        ("bench_retention.py", ["--save", "../x"], "plain file name"),
        ("bench_training.py", ["--lengths", "0"], "--lengths must be at least 1"),
        ("bench_decoding.py", ["--preset", "bsae"], "did you mean 'base'"),
        ("bench_decoding.py", ["--heads", "7"], "num_heads must divide d_model"),
    ],
)
def test_benchmark_refuses_in_one_line(script: str, options: list[str], message: str) -> None:
    done = run_script(script, *options)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
