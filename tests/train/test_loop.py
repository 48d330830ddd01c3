import dataclasses
import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from retnet.checkpoint import load_checkpoint
from retnet.config import MixerKind, ModelConfig
from retnet.data.text import load_corpus
from retnet.data.tokenizer import load_tokenizer
from retnet.data.tokens import load_tokens
from retnet.model import RetNet
from retnet.score import score_documents, token_costs
from retnet.train import learner
from retnet.train.config import LogConfig, OptimizerConfig, TrainConfig
from retnet.train.errors import TrainingError
from retnet.train.loop import TrainResult, train
from retnet.train.objective import NextTokenLoss
from retnet.windows import score_windows, sliding_windows

MODEL = ModelConfig(d_model=32, num_layers=2, num_heads=2)
EMBEDDING = "backbone.embed_tokens.weight"


def config_for(text: Path, folder: Path, **changes: Any) -> TrainConfig:
    """A run of a few seconds at most."""
    chosen: dict[str, Any] = dict(
        data=str(text), out=str(folder), context=64, batch_size=4, steps=6
    )
    chosen |= dict(precision="fp32", device="cpu", validation_bytes=2000)
    chosen |= dict(optimizer=OptimizerConfig(warmup_steps=2), log=LogConfig(every=2))
    return TrainConfig(**(chosen | changes))


def metrics_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainResult, Path]:
    """One run long enough to learn something, shared by the tests that only look at it."""
    out = tmp_path_factory.mktemp("runs") / "run"
    config = config_for(data, out, steps=80, context=128, batch_size=8)
    return train(MODEL, config), out


def test_it_learns(trained: tuple[TrainResult, Path]) -> None:
    """Untrained, a byte takes 8 bits; single bytes by their frequency take 4.6."""
    result, out = trained
    bits = [record["bits_per_byte"] for record in metrics_of(out) if record["kind"] == "train"]
    assert bits[0] > 6
    assert bits[-1] < 4.2
    assert result.validation_bits_per_byte is not None
    assert result.validation_bits_per_byte < 4.2


def test_the_metrics_tell_the_run(trained: tuple[TrainResult, Path]) -> None:
    result, out = trained
    start, *records = metrics_of(out)
    assert start["kind"] == "start"
    assert start["model"] == json.loads(json.dumps(MODEL.to_dict()))
    assert TrainConfig.from_dict(start["train"]).steps == 80
    training = [record for record in records if record["kind"] == "train"]
    assert [record["step"] for record in training] == list(range(2, 81, 2))
    for record in training:
        assert record["tokens"] == record["step"] * 8 * 128
        # A token more than bytes for each document, whose end is predicted too.
        assert record["bits_per_byte"] == pytest.approx(record["loss_nats"] / math.log(2), rel=1e-3)
        assert record["grad_norm"] > 0
        assert record["tokens_per_s"] > 0
    assert max(record["lr"] for record in training) == pytest.approx(
        OptimizerConfig().learning_rate
    )
    validation = [record for record in records if record["kind"] == "validation"]
    assert [record["step"] for record in validation] == [20, 40, 60, 80, 80]
    assert [record["whole"] for record in validation] == [False, False, False, False, True]
    assert validation[-1]["bits_per_byte"] == result.validation_bits_per_byte
    assert result.num_tokens == 80 * 8 * 128
    assert result.exit_code == 0


def test_the_checkpoint_is_the_trained_model(trained: tuple[TrainResult, Path], data: Path) -> None:
    result, out = trained
    assert not result.model.training
    loaded = load_checkpoint(out)
    for name, weight in result.model.state_dict().items():
        assert torch.equal(weight, loaded.state_dict()[name])
    assert load_tokenizer(out).vocab_size == 259
    held_out = [document.data for document in load_corpus(data).validation]
    score = score_documents(loaded, held_out)
    assert score.bits_per_byte == pytest.approx(result.validation_bits_per_byte)


def test_the_plot_is_drawn(trained: tuple[TrainResult, Path]) -> None:
    pytest.importorskip("matplotlib")
    assert (trained[1] / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_held_out_text_is_never_drawn(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No window of the batches that a run draws is found in a held-out file."""
    drawn: list[torch.Tensor] = []
    forward = NextTokenLoss.forward

    def watched(module: NextTokenLoss, tokens: torch.Tensor, *rest: Any, **options: Any) -> Any:
        if module.training:
            drawn.append(rest[0])
        return forward(module, tokens, *rest, **options)

    monkeypatch.setattr(NextTokenLoss, "forward", watched)
    train(MODEL, config_for(data, tmp_path / "run"))
    corpus = load_corpus(data)
    held_out = b"\0".join(document.data for document in corpus.validation)
    trained_on = b"\0".join(document.data for document in corpus.train)
    tokenizer = load_tokenizer(tmp_path / "run")
    windows = [tokenizer.decode_bytes(row.tolist()) for targets in drawn for row in targets]
    whole = [window for window in windows if len(window) == 64]
    assert len(whole) >= 20
    assert all(window in trained_on and window not in held_out for window in whole)


def test_runs_repeat_exactly(data: Path, tmp_path: Path) -> None:
    """Dropout included, and whatever the caller's own random numbers are."""
    model_config = dataclasses.replace(MODEL, dropout=0.2)
    results = []
    for name in ("a", "b"):
        torch.manual_seed(len(results))
        before = torch.random.get_rng_state()
        results.append(train(model_config, config_for(data, tmp_path / name)))
        assert torch.equal(torch.random.get_rng_state(), before)
    first, second = (result.model.state_dict() for result in results)
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = train(model_config, config_for(data, tmp_path / "c", seed=1)).model.state_dict()
    assert not torch.equal(
        first["backbone.embed_tokens.weight"], other["backbone.embed_tokens.weight"]
    )


def test_minutes_end_about_in_time(data: Path, tmp_path: Path) -> None:
    config = config_for(data, tmp_path / "run", steps=None, minutes=4 / 60, validation_bytes=500)
    result = train(MODEL, config)
    assert 2 < result.elapsed_s < 8
    assert result.num_steps > 10
    last = [record for record in metrics_of(tmp_path / "run") if record["kind"] == "train"][-1]
    assert last["step"] == result.num_steps
    assert last["lr"] < OptimizerConfig().learning_rate / 10


def test_bf16_learns_too(data: Path, tmp_path: Path) -> None:
    train(MODEL, config_for(data, tmp_path / "run", steps=20, precision="bf16"))
    records = metrics_of(tmp_path / "run")
    losses = [record["loss_nats"] for record in records if record["kind"] == "train"]
    assert records[0]["precision"] == "bf16"
    assert losses[-1] < losses[0] - 1
    weights = load_checkpoint(tmp_path / "run").state_dict().values()
    assert all(weight.dtype == torch.float32 for weight in weights)


def test_a_console_is_told(data: Path, tmp_path: Path) -> None:
    with (tmp_path / "log").open("w+") as log:
        train(MODEL, config_for(data, tmp_path / "run"), console=Console(file=log, width=80))
        log.seek(0)
        text = log.read()
    assert "held out" in text
    assert "fp32 matmuls: as asked" in text
    assert "bits per byte on everything held out" in text
    assert f"after 6 steps, 1,536 tokens; saved in {tmp_path / 'run'}" in text


def test_without_matplotlib_one_line_names_the_extra(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with caplog.at_level(logging.WARNING):
        train(MODEL, config_for(data, tmp_path / "run", steps=2))
    messages = [record.getMessage() for record in caplog.records]
    assert messages == ["no plot: plotting needs matplotlib: pip install 'retnet[plot]'"]
    assert not (tmp_path / "run" / "loss.png").exists()


def test_a_folder_with_a_run_is_left_as_it_is(data: Path, tmp_path: Path) -> None:
    config = config_for(data, tmp_path / "run", steps=1)
    train(MODEL, config)
    before = contents(tmp_path / "run")
    with pytest.raises(TrainingError, match="already holds a run"):
        train(MODEL, config)
    assert contents(tmp_path / "run") == before


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "nowhere"}, "'nowhere' is not there"),
        ({"context": 10_000_000}, "too little text to train on"),
        ({"device": "nonsense"}, "device 'nonsense' cannot be used here"),
    ],
)
def test_bad_runs_leave_nothing_behind(
    data: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        train(MODEL, config_for(data, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_a_small_vocabulary_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"at least 259 .* got 256"):
        train(dataclasses.replace(MODEL, vocab_size=256), config_for(data, tmp_path / "run"))


def test_a_loss_that_is_not_finite_stops_the_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names step and seed, and the checkpoint before is the one of step 4."""
    forward = NextTokenLoss.forward
    steps = iter(range(100))

    def spoilt(module: NextTokenLoss, *arguments: Any, **options: Any) -> Any:
        loss, state = forward(module, *arguments, **options)
        return loss * (math.nan if module.training and next(steps) == 6 else 1.0), state

    monkeypatch.setattr(NextTokenLoss, "forward", spoilt)
    config = config_for(data, tmp_path / "run", steps=20, validate_every=4, seed=3)
    message = (
        r"at step 6 \(its rows begin at tokens \d+, .*\) is not finite \(seed 3\); "
        "the checkpoint of step 4 in .* is intact"
    )
    with pytest.raises(TrainingError, match=message):
        train(MODEL, config)
    kept = load_checkpoint(tmp_path / "run").state_dict()
    monkeypatch.undo()
    going_on = train(MODEL, config, resume=True)
    straight = train(MODEL, dataclasses.replace(config, out=str(tmp_path / "straight")))
    assert not torch.equal(kept[EMBEDDING], straight.model.state_dict()[EMBEDDING])
    assert_same_weights(going_on.model, straight.model)


def assert_same_weights(first: RetNet, second: RetNet) -> None:
    weights = first.state_dict()
    for name, weight in second.state_dict().items():
        assert torch.equal(weights[name], weight), name


def test_weights_that_are_not_finite_are_never_saved(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last update may overflow without any loss having shown it."""

    def overflow(optimizer: torch.optim.Optimizer, _: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = 1e39  # beyond fp32

    monkeypatch.setattr(learner, "set_learning_rate_", overflow)
    with pytest.raises(TrainingError, match="a weight after step 0 is not finite"):
        train(MODEL, config_for(data, tmp_path / "run", steps=1))
    assert not (tmp_path / "run" / "model.safetensors").exists()


PROGRAM = """
import json, resource, signal, sys
from retnet.config import MixerKind, ModelConfig
from retnet.train.config import TrainConfig
from retnet.train.loop import train

model, config, limit = (json.loads(text) for text in sys.argv[1:])
if limit:
    from retnet.train.run import Run
    save = Run._save

    def save_then_fill_the_disk(run):
        save(run)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    Run._save = save_then_fill_the_disk
try:
    result = train(ModelConfig.from_dict(model), TrainConfig.from_dict(config))
except ValueError as error:
    sys.stderr.write(f"error: {error}\\n")
    sys.exit(2)
sys.exit(result.exit_code)
"""


def start(config: TrainConfig, file_size_limit: int = 0) -> subprocess.Popen[str]:
    arguments = [json.dumps(each) for each in (MODEL.to_dict(), config.to_dict(), file_size_limit)]
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for(condition: Any, process: subprocess.Popen[str], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.skipif(sys.platform == "win32", reason="signals are others on Windows")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_ends(
    data: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """A real signal to a real process: the checkpoint is the step the metrics end with."""
    out = tmp_path / "run"
    process = start(config_for(data, out, steps=1_000_000))
    try:
        wait_for(lambda: (out / "metrics.jsonl").exists() and len(metrics_of(out)) > 3, process)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, errors) == (code, "")
    assert load_checkpoint(out).config == MODEL
    records = metrics_of(out)
    assert records[-1]["kind"] == "train"
    assert records[-1]["step"] < 1_000_000


@pytest.mark.skipif(sys.platform == "win32", reason="there are no limits on Windows")
def test_a_full_disk_keeps_the_checkpoint_before(data: Path, tmp_path: Path) -> None:
    """After the first save no file may grow beyond 20 kB, as on a disk that is full."""
    out = tmp_path / "run"
    process = start(config_for(data, out, steps=8, validate_every=4), 20_000)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert errors.count("\n") == 1
    assert f"error: could not save the checkpoint of step 8 to {out / 'checkpoints'}: " in errors
    assert "File too large" in errors
    assert "step-00000004 is intact; make room and go on with --resume" in errors
    assert load_checkpoint(out).config == MODEL
    assert load_tokenizer(out).vocab_size == 259
    assert metrics_of(out)[-1]["step"] == 8
    assert not list(out.rglob(".*"))


@pytest.mark.parametrize("mixer", ["attention", "hyena"])
def test_what_grows_is_validated_in_windows(data: Path, tmp_path: Path, mixer: MixerKind) -> None:
    """A cache of all that was read would not fit: text is read as in training, each byte once."""
    config = ModelConfig(mixer=mixer, d_model=32, num_layers=1, num_heads=2)
    result = train(config, config_for(data, tmp_path / "run", context=32, steps=2))
    held_out = load_tokens(str(data))
    windows = sliding_windows(held_out.validation, bos_id=held_out.bos_id, window=32, stride=16)
    found = score_windows(token_costs(result.model), windows, device=torch.device("cpu"))
    assert found.num_tokens == held_out.validation_bytes
    assert result.validation_bits_per_byte == pytest.approx(found.bits_per_token, rel=1e-4)
