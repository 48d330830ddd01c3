"""Compiling the C++ of this folder, once for each machine and version, with no help but a compiler.

What was compiled is kept in the user's cache folder, under a name that follows from the sources,
the flags, the compiler and the processor: a home that several machines share has one for each.
Nothing is locked. Whoever finds no usable file compiles one aside and moves it into place, so two
that begin at once do the same work twice and an interrupted one leaves nothing that counts.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

SOURCES = Path(__file__).parent
FLAGS = (
    "-O3",
    "-std=c++17",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wno-psabi",
    "-fPIC",
    "-fvisibility=hidden",  # else code for several processors in one process would share parts
    "-shared",
    "-pthread",
)
_COMPILERS = ("c++", "g++", "clang++")
_DIGEST_BYTES = 32
_TIMEOUT_S = 300


class BuildError(RuntimeError):
    """There is no native code here; the message says why."""


@cache
def library(machine: Sequence[str] = ("-march=native",)) -> ctypes.CDLL:
    """What `load_or_compile` returns, once a process."""
    return load_or_compile(machine)


def load_or_compile(machine: Sequence[str]) -> ctypes.CDLL:
    """The compiled code, from the cache where it is there.

    machine: flags that say what processor it is for.

    Raises:
        BuildError: without a compiler, or where it fails.
    """
    compiler = find_compiler()
    name = f"decode-{_key(compiler, machine)}.so"
    folder = cache_folder()
    found = _load(folder / name)
    if found is not None:
        return found
    with tempfile.TemporaryDirectory(prefix="retnet-") as aside:
        built = Path(aside) / name
        _compile(compiler, machine, built)
        _sign(built)
        _keep(built, folder)
        # Where the cache cannot be written or run from, the file aside serves this process.
        loaded = _load(folder / name) or _load(built)
    if loaded is None:
        raise BuildError(f"what {compiler} made cannot be loaded")
    return loaded


def find_compiler() -> str:
    """The C++ compiler: what CXX names, or the first of the usual ones."""
    named = os.environ.get("CXX", "").split()
    for name in named[:1] or _COMPILERS:
        path = shutil.which(name)
        if path is not None:
            return path
    wanted = named[0] if named else ", ".join(_COMPILERS)
    raise BuildError(f"no C++ compiler was found ({wanted}); install g++ or clang++")


def cache_folder() -> Path:
    """Where compiled code is kept."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path("~/.cache").expanduser()) / "retnet"


def _key(compiler: str, machine: Sequence[str]) -> str:
    """What the compiled code depends on, in short."""
    digest = hashlib.sha256()
    for source in sorted(SOURCES.glob("*.cpp")) + sorted(SOURCES.glob("*.h")):
        digest.update(source.read_bytes())
    facts = (*FLAGS, *machine, compiler, _version(compiler), platform.machine(), _processor())
    digest.update("\0".join(facts).encode())
    return digest.hexdigest()[:16]


def _version(compiler: str) -> str:
    try:
        done = subprocess.run(
            [compiler, "--version"], capture_output=True, text=True, timeout=_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{compiler} does not run: {error}") from error
    return done.stdout


def _processor() -> str:
    """The processor's name and what it can do."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor()
    lines = info.read_text().splitlines()
    return "".join(
        next((line for line in lines if line.startswith(key)), "")
        for key in ("model name", "flags", "Features")
    )


def _compile(compiler: str, machine: Sequence[str], built: Path) -> None:
    command = [compiler, *FLAGS, *machine, str(SOURCES / "decode.cpp"), "-o", str(built)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{compiler} does not run: {error}") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        first = next((line for line in lines if "error" in line), lines[0] if lines else "")
        raise BuildError(f"{compiler} failed with exit code {done.returncode}: {first}")


def _sign(path: Path) -> None:
    """Append its digest, which loaders pass over: loading half a file would end the process."""
    code = path.read_bytes()
    path.write_bytes(code + hashlib.sha256(code).digest())


def _keep(built: Path, folder: Path) -> None:
    """Put a copy into the cache, if that can be written."""
    aside = folder / f"{built.name}.{os.getpid()}.{os.urandom(4).hex()}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.copyfile(built, aside)
        aside.replace(folder / built.name)
    except OSError:
        with suppress(OSError):
            aside.unlink()


def _load(path: Path) -> ctypes.CDLL | None:
    """The code of a file, None where it is missing, damaged or not for this system."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    code, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
    if hashlib.sha256(code).digest() != digest:
        return None
    try:
        return ctypes.CDLL(str(path))
    except OSError:
        return None
