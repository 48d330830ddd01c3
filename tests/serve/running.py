"""A real `retnet serve` for tests: a process of its own, on a port that the system chooses."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import torch

from retnet.checkpoint import save_checkpoint
from retnet.config import ModelConfig
from retnet.data.tokenizer import ByteTokenizer
from retnet.model import RetNet

START_S = 90
PATIENCE_S = 60


def save_model(directory: Path, **changes: object) -> RetNet:
    """A small model that writes at random, with the byte tokenizer."""
    sizes = {"vocab_size": 259, "d_model": 64, "num_layers": 2, "num_heads": 2, **changes}
    config = ModelConfig.from_dict(sizes)
    model = RetNet(config, generator=torch.Generator().manual_seed(0)).eval()
    save_checkpoint(directory, model, ByteTokenizer())
    return model


@dataclass
class RunningServer:
    """A server's process, its address, and what it has said so far.

    headers: of all requests.
    """

    process: "subprocess.Popen[str]"
    headers: dict[str, str] = field(default_factory=dict)
    url: str = ""
    lines: list[str] = field(default_factory=list)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def client(self, **headers: str) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers=self.headers | headers, timeout=PATIENCE_S)

    def metric(self, name: str) -> float:
        """A metric's value now."""
        [value] = self.metrics(name)
        return value

    def metrics(self, name: str) -> list[float]:
        """A metric's values now, of one or several replicas."""
        text = httpx.get(f"{self.url}/metrics", headers=self.headers, timeout=PATIENCE_S).text
        pattern = rf"^{re.escape(name)}(?:{{replica=.*}})? (\S+)$"
        return [float(value) for value in re.findall(pattern, text, re.MULTILINE)]

    def until(self, name: str, value: float) -> None:
        """Wait until a metric has a value."""
        deadline = time.monotonic() + PATIENCE_S
        while self.metric(name) != value:
            assert time.monotonic() < deadline, f"{name} is {self.metric(name)}, not {value}"
            time.sleep(0.02)

    def stop(self) -> int:
        """SIGTERM, and its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)


@contextmanager
def started(
    model: Path,
    arguments: Sequence[str] = (),
    environment: dict[str, str] | None = None,
    *,
    headers: dict[str, str] | None = None,
    start_s: float = START_S,
    program: Sequence[str] = ("-m", "retnet"),
) -> Iterator[RunningServer]:
    """A server of a model, ready, in a process group of its own; it is ended afterwards if it
    hasn't.

    headers: of all requests.
    start_s: how long it may take to be ready.
    program: what Python runs.
    """
    command = [sys.executable, *program, "serve", "--model", str(model), "--port", "0"]
    process = subprocess.Popen(
        [*command, *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
        process_group=0,
    )
    server = RunningServer(process, headers or {})
    ready = threading.Event()
    reader = threading.Thread(target=_read, args=(server, ready))
    reader.start()
    try:
        assert ready.wait(start_s) and server.url, "".join(server.lines)
        yield server
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        reader.join()


def _read(server: RunningServer, ready: threading.Event) -> None:
    assert server.process.stderr is not None
    with server.process.stderr as lines:
        for line in lines:
            server.lines.append(line)
            found = re.search(r"; (http://\S+)$", line.strip())
            if found:
                server.url = found[1]
                ready.set()
    ready.set()  # it has ended
