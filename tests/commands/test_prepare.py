"""`retnet prepare`, as people call it: what it prints and refuses, and that nothing is lost."""

import gzip
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import retnet
from retnet.cli import main
from retnet.data.tokens import load_tokens

ROOT = Path(retnet.__file__).parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
WORDS = ["naïve", "日本語", "🙂", "retention", "\r\n", "of", "words", "and", "\tmore"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "retnet", "prepare", *arguments]


def run(
    *arguments: str, limit: Callable[[], None] | None = None
) -> subprocess.CompletedProcess[str]:
    """`retnet prepare` in a process of its own."""
    return subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=120,
        preexec_fn=limit,
    )


def write_lines(path: str, count: int = 400, length: int = 60) -> None:
    rng = random.Random(0)
    rows = (" ".join(rng.choices(WORDS, k=length)) for _ in range(count))
    Path(path).write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))


def contents(directory: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(directory).iterdir()}


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a wrong call gets."""
    assert main(["prepare", *arguments]) == 2
    captured = capsys.readouterr()
    assert re.fullmatch(r"retnet: error: [^\n]+\n", captured.err)
    return captured.err


def test_what_it_prints(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_lines("a.jsonl")
    with Path("a.jsonl").open("a") as file:
        file.write('{"text": " "}\n')
    arguments = ["prepare", "a.jsonl", "--out", "my tokens", "--workers", "1"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert re.match(r"'my tokens': 0:\d\d, [\d.]+ [kM]B of text a second\n", out)
    data = load_tokens("my tokens")
    documents = 400 - len(data.validation)
    assert f"  train       {len(data.train):,} tokens, {documents} documents, " in out
    assert f" tokens, {len(data.validation)} documents, " in out
    assert "  left out    documents: 1 empty\n" in out
    assert "  vocabulary  259 ids, uint16\n" in out
    assert out.endswith("Train on it: retnet train --train.data 'my tokens'\n")
    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith("'my tokens' was complete already.\n")


def test_files_of_flags_and_several_sources(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_lines("a.jsonl", 20)
    write_lines("b.jsonl", 30)
    Path("prepare.yaml").write_text("sources: [a.jsonl, b.jsonl]\nvalidation_share: 0.2\n")
    assert main(["prepare", "--config", "prepare.yaml", "--workers", "1"]) == 0
    first = load_tokens("prepared")
    capsys.readouterr()
    assert main(["prepare", "a.jsonl", "b.jsonl", "--validation-share", "0.2", "--out", "b"]) == 0
    assert load_tokens("b").fingerprint == first.fingerprint


def test_a_tokenizer_and_training_on_it(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The line that it ends with, as it was printed."""
    write_lines("a.jsonl")
    assert main(["prepare", "a.jsonl", "--train_bpe", "300", "--workers", "1"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    line = "Train on it: retnet train --train.data prepared --model.vocab_size 300"
    assert last == line
    small = "--model.d_model 32 --model.num_layers 1 --train.steps 2 --train.context 16"
    assert main([*line.split()[4:], *small.split(), "--train.out", "run"]) == 0
    capsys.readouterr()
    assert main(["generate", "naïve", "--model", "run", "--max_tokens", "3"]) == 0


def test_verify(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_lines("a.jsonl")
    assert main(["prepare", "a.jsonl", "--workers", "1"]) == 0
    capsys.readouterr()
    assert main(["prepare", "--verify", "prepared"]) == 0
    assert capsys.readouterr().out == "prepared: 2 shards are as they were written\n"
    path = Path("prepared/train-00000.bin")
    path.write_bytes(path.read_bytes()[:-2] + b"\0\0")
    assert "not as they were written: train-00000.bin" in refusal(capsys, "--verify", "prepared")
    path.write_bytes(path.read_bytes()[:-2])
    assert "train-00000.bin is cut short" in refusal(capsys, "--verify", "prepared")
    assert "holds no prepared tokens" in refusal(capsys, "--verify", "nowhere")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name what to prepare: retnet prepare SOURCE ... --out DIR"),
        (["a.jsonl", "--verify", "b"], "--verify DIR checks what is there; it takes no SOURCE"),
        (["nothing"], "'nothing' is not there; pass a file, a folder"),
        (["a.jsonl", "--train_bpe", "2"], "--train_bpe must be an integer >= 259, got 2"),
        (["a.jsonl", "--text_field", "b"], "a.jsonl, line 1: there is no field 'b', there are 't"),
        (["a.jsonl", "--validation_share", "2"], "--validation_share must be a number between 0"),
        (["a.jsonl", "--split_on", "("], "--split_on must be a regular expression"),
        (["a.jsonl", "--out", "full"], "--out 'full' holds other files (mine.txt); name a folder"),
        (["a.jsonl", "--tokenizer", "no/where"], "--tokenizer 'no/where' is no file or folder"),
        (["latin.txt"], "data file 'latin.txt' is not UTF-8: byte 3 is 0xe9"),
        (["cut.gz"], "cut.gz is damaged or cut short"),
        (["empty.txt"], "'empty.txt' is empty (0 bytes)"),
        (["blank.txt"], "to hold any out: 0 bytes (documents left out: 1 empty)"),
    ],
)
def test_what_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    write_lines("a.jsonl", 20)
    Path("full").mkdir()
    Path("full/mine.txt").write_text("mine")
    Path("latin.txt").write_bytes(b"caf\xe9")
    Path("cut.gz").write_bytes(b"\x1f\x8b\x08\x00")
    Path("empty.txt").write_bytes(b"")
    Path("blank.txt").write_bytes(b" \n\n")
    assert message in refusal(capsys, *arguments)


# --- going on


def records() -> int:
    return len(list(Path("prepared/unfinished").glob("*.json")))


def kill_at(process: subprocess.Popen[bytes], count: int, number: signal.Signals) -> None:
    """Send a signal once so many parts are complete, or once the process ended."""
    while process.poll() is None and records() < count:
        time.sleep(0.001)
    time.sleep(random.Random(count).uniform(0, 0.03))
    process.send_signal(number)
    process.wait(timeout=60)


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_killed_again_and_again(here: Path, workers: str) -> None:
    """kill -9 at random moments: what goes on from there ends as one go does, bit for bit."""
    write_lines("a.jsonl", 3000)
    arguments = ["a.jsonl", "--train_bpe", "400", "--shard_bytes", "40000", "--workers", workers]
    assert run(*arguments, "--out", "straight").returncode == 0
    rng = random.Random(int(workers))
    kills = 0
    while not Path("prepared/data.json").exists() and kills < 40:
        process = subprocess.Popen(
            command(*arguments), env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=2
        )
        kill_at(process, records() + rng.randint(0, 8), signal.SIGKILL)
        kills += 1
    assert kills >= 5
    assert run(*arguments).returncode == 0
    assert contents("prepared") == contents("straight")


def test_no_process_outlives_its_parent(here: Path) -> None:
    """Killed, it can't end its workers; they see it by themselves."""
    write_lines("a.jsonl", 3000)
    arguments = ["a.jsonl", "--train_bpe", "400", "--shard_bytes", "40000", "--workers", "2"]
    process = subprocess.Popen(
        command(*arguments), env=ENVIRONMENT, stdout=subprocess.DEVNULL, start_new_session=True
    )
    kill_at(process, 3, signal.SIGKILL)
    assert process.returncode == -9
    deadline = time.monotonic() + 30
    while any(group_of(pid) == process.pid for pid in processes()):
        assert time.monotonic() < deadline, "a worker still runs"
        time.sleep(0.05)


def processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def group_of(pid: int) -> int | None:
    """The process group of a process that runs, else None."""
    try:
        state, _, group = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:3]
    except OSError:
        return None
    return None if state == "Z" else int(group)


def test_ctrl_c(here: Path) -> None:
    """It ends at once, says how to go on, and does."""
    write_lines("a.jsonl", 3000)
    arguments = ["a.jsonl", "--train_bpe", "400", "--shard_bytes", "40000", "--workers", "2"]
    process = subprocess.Popen(
        command(*arguments),
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    while process.poll() is None and records() < 3:
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all processes
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"interrupted; the same command goes on from the shards that are complete" in out
    assert err == b""
    assert not Path("prepared/data.json").exists()
    assert not list(Path("prepared/unfinished").glob(".*.bin.*"))
    assert run(*arguments).returncode == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_full_disk(here: Path, workers: str) -> None:
    """Here a limit on the size of files: one line says what happened, and it goes on later."""
    write_lines("a.jsonl", 400)
    arguments = ["a.jsonl", "--shard_bytes", "30000", "--workers", workers]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))

    done = run(*arguments, limit=limit)
    assert done.returncode == 2
    assert re.search(r"^retnet: error: .*prepared.*: File too large\n$", done.stderr)
    assert not list(Path("prepared").glob("*.bin"))
    assert not list(Path("prepared/unfinished").glob(".*"))
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    assert run(*arguments, "--out", "straight").returncode == 0
    assert contents("prepared") == contents("straight")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lines", "text", "gz"])
def test_memory_does_not_grow(here: Path, kind: str) -> None:
    """Ten times the input takes no more."""
    write_lines("small", 20_000)
    data = Path("small").read_bytes()
    peaks = []
    for name, copies in (("a", 1), ("b", 10)):
        path = f"{name}.{ {'lines': 'jsonl', 'text': 'txt', 'gz': 'txt.gz'}[kind] }"
        with Path(path).open("wb") as file:
            for _ in range(copies):
                file.write(data if kind != "gz" else gzip.compress(data, 1))
        code = (
            "import resource, sys; from retnet.cli import main; code = main(sys.argv[1:]);"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(code)"
        )
        arguments = ["prepare", path, "--out", name, "--workers", "1", "--shard_bytes", "4000000"]
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True,
            text=True,
            env=ENVIRONMENT,
        )
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout.splitlines()[-1]))
    small, large = peaks
    assert large < 1.3 * small + 20_000
