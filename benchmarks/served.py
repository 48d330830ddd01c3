"""A real `retnet serve` to measure: a process of its own, with a model of random weights."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from itertools import islice, product
from pathlib import Path
from string import ascii_letters

import torch

import retnet
from retnet.checkpoint import save_checkpoint
from retnet.config import ModelConfig
from retnet.data.pretrained import PretrainedTokenizer
from retnet.data.tokenizer import TOKENIZER_FILE, ByteTokenizer, printable_bytes
from retnet.model import RetNet

START_S = 300
PATIENCE_S = 60
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def save_random_model(directory: Path, config: ModelConfig, dtype: torch.dtype) -> None:
    """A model that writes at random, with a tokenizer of its vocabulary."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer: ByteTokenizer | PretrainedTokenizer = ByteTokenizer()
    if config.vocab_size != tokenizer.vocab_size:
        _write_tokenizer(directory / TOKENIZER_FILE, config.vocab_size)
        tokenizer = PretrainedTokenizer(directory)
    model = RetNet(config, generator=torch.Generator().manual_seed(0)).to(dtype)
    save_checkpoint(directory, model.eval(), tokenizer)


def _write_tokenizer(path: Path, vocab_size: int) -> None:
    """Byte-level BPE whose tokens beyond the bytes are two and three letters, merged in order."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    pairs = list(product(ascii_letters, ascii_letters))
    triples = ((first + second, third) for third in ascii_letters for first, second in pairs)
    merges = [*pairs, *islice(triples, max(0, vocab_size - 256 - len(pairs)))][: vocab_size - 256]
    tokens = [*printable_bytes(), *(first + second for first, second in merges)]
    if len(tokens) != vocab_size:
        raise ValueError(f"vocab_size must be in [256, {len(tokens):,}], got {vocab_size:,}")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(path))


@dataclass
class Server:
    """A server's process, its port, and what it has said so far. key: what it asks for."""

    process: "subprocess.Popen[str]"
    key: str = ""
    port: int = 0
    lines: list[str] = field(default_factory=list)

    @property
    def rss_bytes(self) -> int:
        """What it has of the machine's memory now."""
        return self._status("VmRSS") * 1024

    @property
    def num_threads(self) -> int:
        """Threads now."""
        return self._status("Threads")

    @property
    def num_files(self) -> int:
        """Files and sockets that are open now."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    @property
    def cpu_s(self) -> float:
        """Seconds of processors' time that it has taken."""
        stat = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(stat[11]) + int(stat[12])) / _TICKS_PER_S

    @property
    def has_failed(self) -> bool:
        """Whether it has ended, or has told of something unexpected."""
        return self.process.poll() is not None or "Traceback" in "".join(self.lines)

    def get(self, path: str) -> bytes:
        """What it answers."""
        link = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            link.request("GET", path, headers={"Authorization": f"Bearer {self.key}"})
            response = link.getresponse()
            data = response.read()
        finally:
            link.close()
        if response.status != 200:
            raise RuntimeError(f"{path}: {response.status} {data[:500]!r}")
        return data

    def metrics(self) -> dict[str, float]:
        """Its metrics without labels."""
        found = re.findall(r"^(retnet_\w+) (\S+)$", self.get("/metrics").decode(), re.MULTILINE)
        return {name: float(value) for name, value in found}

    def state_bytes(self) -> int:
        """What one request takes, whatever its length."""
        size = json.loads(self.get("/v1/models"))["data"][0]["retnet"]["state_bytes"]
        assert isinstance(size, int)
        return size

    def stop(self) -> int:
        """SIGTERM, and its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)

    def _status(self, key: str) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        [value] = re.findall(rf"^{key}:\s+(\d+)", status, re.MULTILINE)
        return int(value)


@contextmanager
def serving(model: Path, *flags: str, threads: int, key: str = "") -> Iterator[Server]:
    """A server of a model, ready, of the package that is imported here; it is ended afterwards."""
    command = [sys.executable, "-m", "retnet", "serve", "--model", str(model), "--port", "0"]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "RETNET_API_KEY": key,
        "PYTHONPATH": str(Path(retnet.__file__).parent.parent),
    }
    process = subprocess.Popen(
        [*command, "--threads", str(threads), *flags],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    server, ready = Server(process, key), threading.Event()
    reader = threading.Thread(target=_read, args=(server, ready), daemon=True)
    reader.start()
    try:
        if not ready.wait(START_S) or not server.port:
            raise RuntimeError(f"the server does not start: {''.join(server.lines)}")
        yield server
    finally:
        process.kill()
        process.wait()
        reader.join()


def _read(server: Server, ready: threading.Event) -> None:
    assert server.process.stderr is not None
    with server.process.stderr as lines:
        for line in lines:
            server.lines.append(line)
            found = re.search(r"; http://\S+:(\d+)$", line.strip())
            if found:
                server.port = int(found[1])
                ready.set()
    ready.set()  # it has ended
