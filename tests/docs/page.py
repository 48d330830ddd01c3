"""A page of the documentation as a program: its examples, one after the other, in one folder."""

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import URLError
from urllib.request import urlopen

import retnet
from retnet.cli import main

ROOT = Path(retnet.__file__).parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
SHORT = "--train.steps 2 --train.minutes null --train.validation_bytes 500 --train.threads 1"

# What would take minutes, and what it is here instead.
SHORTER = (
    ("minutes=1)", "steps=2, validation_bytes=500, threads=1)"),
    ('data="stdlib"', 'data="my/texts"'),
)

# Commands that no test runs: the beginning of a line, and why.
LEFT_OUT = {
    "pip install": "what the tests run in has been installed",
    "ray start": "tests/serve has clusters",
    "retnet serve --model /shared/first": "it needs that cluster",
    "retnet serve --model runs/first --replicas": "tests/serve has replicas",
    "lm_eval": "it downloads the task's data",
    "retnet bench": "it measures for minutes; tests/test_bench.py has it",
    "retnet eval --tasks piqa --limit 100": "it downloads the task's data",
    "retnet eval --model runs/first --tasks piqa,hellaswag": "it downloads the tasks' data",
    "retnet reproduce": "tests/reproduce has it",
    "make test-kernels": "it runs tests",
    "python benchmarks/": "tests/test_bench.py and tests/ops have them",
}


class Block(NamedTuple):
    """A fenced block of a page: its language, its text, and the line that it begins on."""

    language: str
    text: str
    line: int


def blocks(path: Path) -> list[Block]:
    """The examples of a page."""
    source = path.read_text()
    found = re.finditer(r"^```(\w+)\n(.*?)^```$", source, re.MULTILINE | re.DOTALL)
    return [
        Block(match[1], match[2], source.count("\n", 0, match.start()) + 1)
        for match in found
        if match[1] in ("python", "sh")
    ]


def statements(shell: str) -> Iterator[str]:
    """The commands of a block of shell: lines, continued lines, and lines with a here-document."""
    lines = iter(shell.splitlines())
    for line in lines:
        while line.endswith("\\"):
            line = line[:-1] + next(lines)
        document = re.search(r"<<'(\w+)'", line)
        while document and not line.endswith(f"\n{document[1]}"):
            line += "\n" + next(lines)
        if line.strip():
            yield line


class Page:
    """Runs a page's examples in the current folder, as a reader would who pastes them.

    Servers that it starts run until `close`, on the port of this test instead of 8000.
    """

    def __init__(self, path: Path, port: int) -> None:
        self._path, self._port = path, port
        self._variables: dict[str, Any] = {"__name__": "__main__"}
        self._server: subprocess.Popen[bytes] | None = None

    def run(self, block: Block) -> None:
        """One example. What a command line can't do is an AssertionError that quotes it."""
        text = block.text.replace("8000", str(self._port))
        if block.language == "python":
            self._run_python(text, block.line)
            return
        for statement in statements(text):
            if not statement.startswith(tuple(LEFT_OUT)):
                self._run_statement(statement)

    def close(self) -> None:
        """End the server, where there is one."""
        if self._server is not None:
            self._server.terminate()
            self._server.wait(60)
            self._server = None

    def _run_python(self, text: str, line: int) -> None:
        file_name = re.match(r"# (\w+\.py)\n", text)
        if file_name:  # for a command that comes later
            Path(file_name[1]).write_text(text)
            return
        for long, short in SHORTER:
            text = text.replace(long, short)
        exec(compile("\n" * line + text, str(self._path), "exec"), self._variables)

    def _run_statement(self, statement: str) -> None:
        if statement.startswith("retnet serve"):
            self._serve(statement)
            return
        statement = shorter(statement)
        # In this process, which has imported everything already, where a shell has nothing to do.
        if statement.startswith("retnet ") and not re.search(r"[|<>]", statement):
            code = main(shlex.split(statement, comments=True)[1:])
            assert code == 0, statement
            return
        tools = f'retnet() {{ {sys.executable} -m retnet "$@"; }}\n'
        tools += f'torchrun() {{ {sys.executable} -m torch.distributed.run "$@"; }}\n'
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", tools + statement],
            env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{statement}\n{done.stdout}\n{done.stderr}"

    def _serve(self, statement: str) -> None:
        self.close()
        arguments = shlex.split(statement, comments=True)[1:]
        command = [sys.executable, "-m", "retnet", *arguments, "--port", str(self._port)]
        self._server = subprocess.Popen(command, env=ENVIRONMENT)
        deadline = time.monotonic() + 90
        while not self._is_ready():
            assert self._server.poll() is None, f"{statement}: ended"
            assert time.monotonic() < deadline, f"{statement}: not ready"
            time.sleep(0.2)

    def _is_ready(self) -> bool:
        try:
            with urlopen(f"http://127.0.0.1:{self._port}/health", timeout=5):
                return True
        except (URLError, OSError):
            return False


def shorter(statement: str) -> str:
    """The same command with less to do: two steps of training, and little text."""
    statement = statement.replace("prepare stdlib", "prepare stdlib --max_bytes 1000000")
    command, _, comment = statement.partition("  #")
    if not re.search(r"\bretnet train\b", command) or "--resume" in command:
        return statement
    text = "" if "--train.data" in command else "--train.data my/texts "
    return f"{command} {text}{SHORT}  #{comment}"
