"""Compiling on first use, and all that can be in its way."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from retnet.decoding import Decoder
from retnet.decoding.native import build
from retnet.decoding.native.build import BuildError, library, load_or_compile
from tests.cpus import needs_compiler
from tests.decoding.test_decoder import make_model

FAST = ("-O0",)  # the last flag of that kind counts


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The cache, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library.cache_clear()
    yield tmp_path / "retnet"
    library.cache_clear()


@needs_compiler
def test_compiled_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_or_compile(FAST)
    [kept] = folder.iterdir()
    assert kept.suffix == ".so"

    def refuse(*_: object) -> None:
        raise AssertionError("it compiles again")

    monkeypatch.setattr(build, "_compile", refuse)
    load_or_compile(FAST)


@needs_compiler
@pytest.mark.parametrize("damage", ["truncated", "empty", "other bytes", "a folder"])
def test_a_damaged_file_is_replaced(folder: Path, damage: str) -> None:
    """Loading half a library would end the process with a bus error."""
    load_or_compile(FAST)
    [kept] = folder.iterdir()
    whole = kept.read_bytes()
    kept.unlink()
    if damage == "a folder":
        kept.mkdir()
    else:
        kept.write_bytes(
            {"truncated": whole[: len(whole) // 2], "empty": b"", "other bytes": b"x" * 99}[damage]
        )
    assert load_or_compile(FAST).retnet_instructions() in (0, 1, 2)
    if damage != "a folder":
        assert kept.stat().st_size == len(whole)
    assert len(list(folder.iterdir())) == 1


@needs_compiler
def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file stands where the folder should be, which stops root too."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert load_or_compile(FAST).retnet_instructions() in (0, 1, 2)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (None, "no C.. compiler was found"),
        ("#!/bin/sh\necho 'x.h: error: no such thing' >&2; exit 3", "exit code 3.*no such thing"),
        ("#!/nowhere/sh\n", "does not run"),
        (
            '#!/bin/sh\n[ "$1" = --version ] && exit\n'
            'while [ $# -gt 1 ]; do shift; done; echo > "$1"',
            "cannot be loaded",
        ),
    ],
    ids=["missing", "failing", "broken", "making nonsense"],
)
def test_no_compiler(
    script: str | None,
    message: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who asks for the native kernel is told why not; others get torch's, and may ask why."""
    compiler = tmp_path / "compiler"
    if script is not None:
        compiler.write_text(script)
        compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(BuildError, match=message):
        Decoder(make_model(), kernel="native")
    decoder = Decoder(make_model())
    assert decoder.kernel_name == "torch"
    assert decoder.why_not_native is not None
    assert not folder.exists() or not [path for path in folder.iterdir() if path.suffix != ".so"]


def test_no_compiler_on_the_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(folder))
    with pytest.raises(BuildError, match=r"c\+\+, g\+\+, clang\+\+.*install"):
        load_or_compile(FAST)


def test_interrupted(folder: Path, tmp_path: Path) -> None:
    """Ctrl-C while the compiler works: it ends with it, and nothing is left behind."""
    compiler, begun, aside = tmp_path / "compiler", tmp_path / "begun", tmp_path / "aside"
    aside.mkdir()
    compiler.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exit\ntouch {begun}\nexec sleep 100\n')
    compiler.chmod(0o755)
    code = f"from retnet.decoding.native.build import load_or_compile; load_or_compile({FAST!r})"
    environment = {**os.environ, "CXX": str(compiler), "TMPDIR": str(aside)}
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True
    )
    while not begun.exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in process.communicate(timeout=30)[1]
    assert not list(aside.iterdir())
    assert not folder.exists()


@needs_compiler
def test_several_at_once(folder: Path) -> None:
    """Each compiles for itself; all end with the same file, and nothing else is left."""
    code = (
        "from retnet.decoding.native.build import load_or_compile\n"
        f"print(load_or_compile({FAST!r}).retnet_instructions())"
    )
    command, environment = [sys.executable, "-c", code], {**os.environ}
    running = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) for _ in range(3)]
    assert all(process.communicate(timeout=120)[0].strip().isdigit() for process in running)
    assert len(list(folder.iterdir())) == 1
