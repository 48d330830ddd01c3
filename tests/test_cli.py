"""The command `retnet`, as people call it: what it prints, what it refuses, how it ends."""

import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import fields
from io import BytesIO, TextIOWrapper
from pathlib import Path
from shutil import copytree

import pytest
import torch

import retnet
from retnet.allocator import AllocatorAnswer
from retnet.checkpoint import save_checkpoint
from retnet.cli import main
from retnet.commands import (
    bench,
    chat,
    convert,
    evaluate,
    generate,
    inspect,
    plot,
    prepare,
    reproduce,
    train,
)
from retnet.commands.flags import attribute_texts, group_values, make_parser, read_flags
from retnet.commands.models import model_config, num_parameters
from retnet.commands.terminal import bytes_text, visible
from retnet.config import PRESETS, ModelConfig, preset
from retnet.data.prepare.config import PrepareConfig
from retnet.data.tokenizer import ByteTokenizer
from retnet.model import RetNet
from retnet.sampling import SamplingParams
from retnet.train.config import OptimizerConfig, TrainConfig

ROOT = Path(retnet.__file__).parent.parent
COMMANDS = {
    "prepare": prepare.COMMAND,
    "train": train.COMMAND,
    "generate": generate.COMMAND,
    "chat": chat.COMMAND,
    "plot": plot.COMMAND,
    "inspect": inspect.COMMAND,
    "eval": evaluate.COMMAND,
    "reproduce": reproduce.COMMAND,
    "convert": convert.COMMAND,
    "bench": bench.COMMAND,
}
SMALL = ("--model.d_model", "32", "--model.num_layers", "1", "--train.threads", "1")
SENTENCE = "What is written here is learnt by heart. "
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "retnet", *arguments]


def run(
    *arguments: str, cwd: Path, stdin: bytes = b"", **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """`retnet` in a process of its own."""
    return subprocess.run(
        command(*arguments),
        cwd=cwd,
        input=stdin,
        capture_output=True,
        env={**ENVIRONMENT, **environment},
        timeout=60,
    )


def values_of(name: str, *arguments: str) -> dict[str, object]:
    return read_flags(make_parser(name, COMMANDS[name]), arguments)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a wrong call gets."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert re.fullmatch(r"retnet: error: [^\n]+\n", captured.err)
    return captured.err


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with random weights."""
    directory = tmp_path_factory.mktemp("model")
    model = RetNet(preset("tiny", d_model=32), generator=torch.Generator().manual_seed(0))
    save_checkpoint(directory, model, ByteTokenizer())
    return directory


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- help


@pytest.mark.parametrize("arguments", [[], *([name] for name in COMMANDS)])
def test_help_loads_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    """It is there at once: torch alone would take a second."""
    code = (
        "import sys; from retnet.cli import main\n"
        f"try: main({[*arguments, '--help']})\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'numpy', 'rich', 'transformers', 'safetensors', 'lm_eval', 'datasets'}\n"
        "heavy &= set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    assert b"usage: retnet" in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_is_explained(name: str) -> None:
    parser = make_parser(name, COMMANDS[name])
    shown = [each for each in parser._actions if each.help != argparse.SUPPRESS]
    assert not [each.dest for each in shown if not each.help]
    assert not [each.dest for each in shown if "None" in (each.help or "")]


@pytest.mark.parametrize("config", [ModelConfig, PrepareConfig, TrainConfig])
def test_every_field_has_a_text(config: type) -> None:
    assert list(attribute_texts(config)) == [field.name for field in fields(config)]


def test_attribute_texts_go_over_lines() -> None:
    class Config:
        """What it is.

        Attributes:
            one: the first, "a": b, which
                goes on.
            two: the second.
        """

    assert attribute_texts(Config) == {
        "one": 'the first, "a": b, which goes on.',
        "two": "the second.",
    }
    assert attribute_texts(type("Bare", (), {})) == {}


def test_sampling_flags_are_those_of_the_library() -> None:
    defaults = {field.name: field.default for field in fields(SamplingParams)}
    assert {name: value for name, (_, value, _) in generate.SAMPLING.items()} == {
        name: value
        for name, value in defaults.items()
        if name not in ("logit_bias", "stop", "stop_tokens")
    }


def test_overview_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    overview = capsys.readouterr().out
    assert all(f"\n  {name} " in overview for name in COMMANDS)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"retnet {retnet.__version__}\n"


# --- values


def test_fields_on_top_of_a_preset() -> None:
    config = model_config(values_of("train", "--model.d_model", "40", "--preset", "small"))
    assert (config.d_model, config.num_layers) == (40, PRESETS["small"].num_layers)


def test_derived_sizes_follow_the_changed_width() -> None:
    """A preset's own key, value and feed-forward sizes would be wrong for another width."""
    config = model_config(values_of("train", "--model.d_model", "512"))
    assert config == preset("tiny", d_model=512)
    assert (config.key_size, config.value_size, config.ffn_size) == (128, 256, 680)


def test_lists_and_choices() -> None:
    gammas = "[0.5, 0.75, 0.875, 1]"
    values = values_of("train", "--model.decay", gammas, "--optimizer.betas", "[0.8, 0.9]")
    assert model_config(values).decay == (0.5, 0.75, 0.875, 1.0)
    assert OptimizerConfig(**group_values(values, "optimizer")).betas == (0.8, 0.9)


@pytest.mark.parametrize("flags_first", [False, True])
def test_flags_win_over_the_file(flags_first: bool, here: Path) -> None:
    Path("run.yaml").write_text(
        "preset: small\ntrain: {steps: 3}\noptimizer: {learning_rate: 1e-4}\n"
    )
    parts = [["--train.steps", "7"], ["--config", "run.yaml"]]
    first, second = parts if flags_first else parts[::-1]
    values = values_of("train", *first, *second)
    assert (values["preset"], values["train.steps"]) == ("small", 7)
    assert values["optimizer.learning_rate"] == 1e-4
    assert values["train.context"] == TrainConfig.context


def test_printed_config_is_read_back(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = ["--train.steps", "7", "--model.d_model", "64", "--optimizer.learning_rate", "1e-3"]
    with pytest.raises(SystemExit) as end:
        main(["train", *chosen, "--print_config"])
    assert end.value.code == 0
    Path("run.yaml").write_text(capsys.readouterr().out)
    expected = values_of("train", *chosen)
    assert values_of("train", "--config", "run.yaml") == {**expected, "config": "run.yaml"}


@pytest.mark.parametrize(
    ("name", "arguments", "key", "value"),
    [
        ("convert", ["--allow-pickle"], "allow_pickle", True),
        ("convert", ["--allow_pickle"], "allow_pickle", True),
        ("convert", ["--fields", "a-b.json"], "fields", "a-b.json"),
        ("convert", ["--fields=a-b.json"], "fields", "a-b.json"),
        ("eval", ["--batch-size", "3"], "batch_size", 3),
        ("train", ["--model.d-model=64"], "model.d_model", 64),
        ("generate", ["--max-tokens", "3", "--", "--top-k"], "prompt", "--top-k"),
    ],
)
def test_dashes_in_flags(name: str, arguments: list[str], key: str, value: object) -> None:
    """One may write '-' for '_' in a name; values stay as they are."""
    assert values_of(name, *arguments)[key] == value


def test_dashes_in_the_file(here: Path) -> None:
    Path("run.yaml").write_text("model: {num-layers: 3}\ntrain: {batch-size: 5}\n")
    values = values_of("train", "--config", "run.yaml")
    assert (values["model.num_layers"], values["train.batch_size"]) == (3, 5)


def test_the_file_may_say_what_has_no_flag(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["convert", "in", "out", "--allow-pickle", "--print_config"])
    Path("run.yaml").write_text(capsys.readouterr().out)
    assert Path("run.yaml").read_text() == "source: in\ndestination: out\nallow_pickle: true\n"
    values = values_of("convert", "--config", "run.yaml")
    assert (values["source"], values["destination"]) == ("in", "out")
    assert values_of("convert", "other", "--config", "run.yaml")["source"] == "other"


def test_prompt_is_never_read_as_yaml() -> None:
    for prompt in ("null", "{a: 1}", "12", "- x", "[", ""):
        assert values_of("generate", prompt)["prompt"] == prompt
    assert values_of("generate", "--", "--x")["prompt"] == "--x"


# --- what is refused, in one line


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["trian"], "unknown command 'trian'; did you mean 'train'?"),
        (["train", "--train.stps", "5"], "unknown flag --train.stps; did you mean '--train.steps'"),
        (["train", "--steps", "5"], "did you mean '--train.steps'"),
        (["train", "--train.step=5"], "unknown flag --train.step;"),
        (["train", "--train.steps", "abc"], "--train.steps must be an integer, got 'abc'"),
        (["train", "--train.steps"], "--train.steps: expected one argument"),
        (["train", "--train.steps", "0"], "--train.steps must be an integer >= 1, got 0"),
        (["train", "--train.steps", "1", "--train.minutes", "1"], "--train.steps and minutes"),
        (["train", "--optimizer.betas", "0.9"], "--optimizer.betas must be a list such as"),
        (["train", "--train.precision", "bf61"], "--train.precision must be one of auto, fp32"),
        (["train", "--train.out", ""], "--train.out must name a folder"),
        (["train", "--train.data", "nowhere"], "--train.data 'nowhere' is not there"),
        (["train", "--train.device", "abacus"], "--train.device 'abacus' cannot be used"),
        (["train", "--preset", "tinny"], "unknown preset 'tinny'; did you mean 'tiny'?"),
        (["train", "--model.norm", "z"], "--model.norm must be one of layernorm, rmsnorm, got 'z'"),
        (["train", "--model.num_heads", "3"], "--model.num_heads must divide d_model"),
        (["train", "--model.decay", "[2, 1, 1, 1]"], "--model.decay must list gammas in (0, 1]"),
        (["train", "--model.vocab_size", "9"], "--model.vocab_size must be at least 259"),
        (["train", "--model.d_model", "4000000"], "choose a smaller --preset"),
        (["generate", "--model", "nowhere"], "--model 'nowhere' is not a folder"),
        (["generate", "--model", "."], "holds no checkpoint"),
        (["generate", "--top_p", "3"], "--top_p must be in (0, 1]"),
        (["generate", "--stop", ""], "--stop must be a list of strings that are not empty"),
        (["generate", "--num", "0"], "--num must be at least 1, got 0"),
        (["generate", "def", "f"], "what is 'f'? Put quotes"),
        (["inspect", "--preset", "13"], "did you mean '13b'?"),
        (["inspect", "--preset", "13b", "--model", "x"], "pass one of them"),
        (["eval", "--batch_size", "0"], "--batch_size must be at least 1, got 0"),
        (["eval", "--limit", "0"], "--limit must be at least 1, got 0"),
        (["eval", "--tasks", " ,"], "--tasks must name at least one, got ' ,'"),
        (["eval", "--threads", "0"], "--threads must be at least 1, got 0"),
        (["eval", "--out", "nowhere/x.json"], "--out 'nowhere/x.json' must be a file in a folder"),
        (["eval", "--model", "nowhere"], "--model 'nowhere' is not a folder"),
        (["bench", "--rounds", "0"], "--rounds must be at least 1, got 0"),
        (["bench", "--dtype", "fp61"], "--dtype must be one of fp32, bf16, got 'fp61'"),
    ],
)
def test_wrong_call(
    arguments: list[str], says: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in refusal(capsys, *arguments)
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"train: {stps: 3}", "run.yaml: unknown setting 'train.stps'; did you mean 'train.steps'"),
        (b"tarin: {steps: 3}", "run.yaml: unknown setting 'tarin'"),
        (b"train: {steps: x}", "run.yaml: --train.steps must be an integer, got 'x'"),
        (b"train: 3", "run.yaml: train must hold settings by name, got 3"),
        (b"- 3", "must hold settings such as 'preset: tiny'"),
        (b"train: {steps: [", "'run.yaml' is not YAML"),
        (b"\xff\xfe", "'run.yaml' is not YAML"),
        (b"config: other.yaml", "unknown setting 'config'"),
    ],
)
def test_wrong_config_file(
    text: bytes, says: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("run.yaml").write_bytes(text)
    assert says in refusal(capsys, "train", "--config", "run.yaml")


def test_missing_config_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = refusal(capsys, "train", "--config", "run.yaml")
    assert "cannot read --config 'run.yaml': No such file" in error


@pytest.mark.parametrize("text", ["", "train:\n"])
def test_empty_config_file(text: str, here: Path) -> None:
    """A file in which everything is commented out is no mistake."""
    Path("run.yaml").write_text(text)
    values = values_of("train", "--config", "run.yaml")
    assert values == {**values_of("train"), "config": "run.yaml"}


@pytest.mark.parametrize("text", [b"", b"\xff not utf-8", b"short"])
def test_text_that_does_not_do(text: bytes, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("text.txt").write_bytes(text)
    error = refusal(capsys, "train", *SMALL, "--train.data", "text.txt")
    assert "--train.data " in error
    assert [path.name for path in here.iterdir()] == ["text.txt"]


def test_damaged_checkpoint(
    model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = copytree(model_dir, tmp_path / "broken") / "model.safetensors"
    broken.write_bytes(broken.read_bytes()[:1000])
    assert "is damaged" in refusal(capsys, "generate", "--model", str(tmp_path / "broken"))


def test_weights_of_another_model(
    model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = copytree(model_dir, tmp_path / "other") / "config.json"
    config = json.loads(other.read_text())
    other.write_text(json.dumps({**config, "d_model": 64}))
    assert "disagree" in refusal(capsys, "generate", "--model", str(tmp_path / "other"))


def test_traceback_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETNET_TRACEBACK", "1")
    with pytest.raises(ValueError, match="unknown command"):
        main(["trian"])


# --- the commands at work


def test_inspect_a_preset_too_large_to_build(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "--preset", "13b"]) == 0
    out = capsys.readouterr().out
    assert "12,841,297,920" in out
    assert "419 MB" in out  # 40 layers x 20 heads x 256 x 512 x 4 bytes
    assert "0.998047" in out  # 1 - 1/512


def test_inspect_a_checkpoint(model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "--model", str(model_dir)]) == 0
    assert "8.19 kB" in capsys.readouterr().out  # 4 layers x 4 heads x 8 x 16 x 4 bytes


def test_inspect_without_decay() -> None:
    """A head with gamma 1 forgets nothing; there is no half-life to divide out."""
    assert inspect._tokens_until(0.5, 0.0) == "never"
    assert inspect._tokens_until(0.5, -0.1) == "6.9 tokens"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_embeddings": False, "bias": True},
        {"ffn_norm": True, "embedding_norm": True},
    ],
)
def test_parameters_by_part(changes: dict[str, bool]) -> None:
    config = preset("tiny", feed_forward="swiglu", **changes)
    counts = inspect.parameters_by_part(config)
    expected = sum(weight.numel() for weight in RetNet(config).parameters())
    assert sum(counts.values()) == expected
    in_norms = counts["norms"] + counts.get("biases", 0)
    assert num_parameters(config) == expected - in_norms


def test_bench(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--json", "--rounds", "1", "--num_tokens", "8"]) == 0
    reports = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [report["name"] for report in reports] == ["forms", "model"]
    assert main(["bench", "--rounds", "1", "--num_tokens", "8", "--dtype", "bf16"]) == 0
    assert "chunkwise" in capsys.readouterr().out


def generated(model_dir: Path, *arguments: str) -> list[str]:
    return ["generate", "--model", str(model_dir), "--seed", "1", *arguments]


def test_generate(model_dir: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """The same seed writes the same; only the text is on stdout, the rest on stderr."""
    outs = []
    for stats in ([], ["--stats"]):
        assert main(generated(model_dir, "def ", "--max_tokens", "30", *stats)) == 0
        captured = capfdbinary.readouterr()
        outs.append(captured.out)
        assert bool(captured.err) == bool(stats)
    assert outs[0] == outs[1] != b""
    assert b"4 tokens read" in captured.err
    assert b"state 8.19 kB" in captured.err


def test_generate_several(model_dir: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    arguments = generated(model_dir, "def ", "--num", "2", "--echo", "--max_tokens", "5")
    assert main(arguments) == 0
    first, second = re.findall(rb"--- \d of 2\ndef ([^-]*)", capfdbinary.readouterr().out)
    assert first != second


def test_generate_from_a_file_of_settings(
    model_dir: Path, here: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    Path("greedy.yaml").write_text(
        f"model: {model_dir}\ntemperature: 0\nmax_tokens: 3\nstop: [never written]\nstats: true\n"
    )
    assert main(["generate", "x", "--config", "greedy.yaml"]) == 0
    assert capfdbinary.readouterr().err


def test_generate_reads_stdin_and_writes_utf8(model_dir: Path, tmp_path: Path) -> None:
    """Whatever the locale says."""
    done = run(
        *generated(model_dir, "-", "--echo", "--max_tokens", "3"),
        cwd=tmp_path,
        stdin="naïve ✓".encode(),
        PYTHONIOENCODING="ascii",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("naïve ✓".encode())


def test_prompt_in_another_script(model_dir: Path, tmp_path: Path) -> None:
    """Typed where the locale knows no such letters."""
    done = run(
        *generated(model_dir, "Он идёт", "--echo", "--max_tokens", "3"),
        cwd=tmp_path,
        LC_ALL="C",
        PYTHONUTF8="0",
        PYTHONCOERCECLOCALE="0",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Он идёт".encode())


def test_prompt_that_is_not_utf8(model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As Python hands on the bytes of a Latin-1 terminal."""
    assert "the prompt is not UTF-8" in refusal(capsys, *generated(model_dir, "caf\udce9"))


def test_generate_where_stdout_is_closed(model_dir: Path, tmp_path: Path) -> None:
    """As in `retnet generate ... >&-`."""
    line = shlex.join(command(*generated(model_dir, "x", "--max_tokens", "3")))
    done = subprocess.run(
        ["sh", "-c", f"{line} >&-"], cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_generate_refuses_other_bytes(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(b"caf\xe9")))
    assert "the prompt on stdin is not UTF-8" in refusal(capsys, *generated(model_dir, "-"))


def start_writing(model_dir: Path, tmp_path: Path) -> subprocess.Popen[bytes]:
    """A process that writes without end, once its first byte is there."""
    # Ends of text are likely with random weights, so it begins many.
    arguments = generated(model_dir, "--max_tokens", "null", "--num", "1000000")
    process = subprocess.Popen(
        command(*arguments),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    )
    assert process.stdout is not None
    assert process.stdout.read(1)
    return process


def test_closed_pipe_is_no_error(model_dir: Path, tmp_path: Path) -> None:
    """As in `retnet generate ... | head -c 10`."""
    process = start_writing(model_dir, tmp_path)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.wait(30) == 141
    assert process.stderr.read() == b""
    process.stderr.close()


def test_interruption_is_no_error(model_dir: Path, tmp_path: Path) -> None:
    process = start_writing(model_dir, tmp_path)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_full_disk_behind_stdout(tmp_path: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command("--help"), stdout=full, stderr=subprocess.PIPE, cwd=tmp_path, env=ENVIRONMENT
        )
    assert done.returncode == 2
    assert done.stderr == b"retnet: error: No space left on device\n"


def test_train_then_generate(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run, its folder refused to a second one and untouched by it, and text from it."""
    Path("text.txt").write_text(SENTENCE * 200)
    training = ("train", "--train.data", "text.txt", "--train.out", "run one", *SMALL)
    assert main([*training, "--train.steps", "3"]) == 0
    out = capsys.readouterr().out
    assert "bits per byte on everything held out" in out
    assert "retnet generate \"...\" --model 'run one'" in out
    before = contents(Path("run one"))

    assert "--train.out folder 'run one' already holds a run" in refusal(capsys, *training)
    assert contents(Path("run one")) == before

    assert main(["generate", "What", "--model", "run one", "--max_tokens", "20"]) == 0
    assert capsys.readouterr().out


def test_allocator_is_tuned_on_request(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only then, and the run says so. Not really here: it would last for the tests that follow."""
    monkeypatch.setattr(train, "tune_allocator", lambda: AllocatorAnswer(True, "tuned, one hopes"))
    Path("text.txt").write_text(SENTENCE * 200)
    training = ("train", "--train.data", "text.txt", *SMALL, "--train.steps", "1", "--train.out")
    assert main([*training, "one"]) == 0
    assert "allocator" not in capsys.readouterr().out
    assert main([*training, "two", "--tune-allocator"]) == 0
    assert "allocator: tuned, one hopes\n" in capsys.readouterr().out


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_interrupted_training_is_saved(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(SENTENCE * 200)
    arguments = (
        "train",
        "--train.data",
        "text.txt",
        "--train.out",
        "out",
        "--log.every",
        "1",
    )
    process = subprocess.Popen(
        command(*arguments, *SMALL),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    )
    metrics = tmp_path / "out" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.exists() and b'"train"' in metrics.read_bytes()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"stopped by SIGINT" in out
    assert b"Traceback" not in errors
    assert (tmp_path / "out" / "model.safetensors").exists()


# --- what is shown


def test_visible_disarms_control_characters() -> None:
    """A model may write an escape sequence; a terminal must not obey it."""
    assert visible("a\x1b[2J\r\x00\x7f\x9b\n\tb") == "a␛[2J␍␀␡�\n\tb"
    assert visible("naïve ✓") == "naïve ✓"


def test_bytes_text() -> None:
    assert [bytes_text(n) for n in (0, 999, 8192, 524_288, 4.19e8, 8.19e10)] == [
        "0 bytes",
        "999 bytes",
        "8.19 kB",
        "524 kB",
        "419 MB",
        "81.9 GB",
    ]
