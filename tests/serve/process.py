"""`retnet serve` as a process, on a small random model."""

import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError

import torch

from retnet.checkpoint import save_checkpoint
from retnet.config import ModelConfig
from retnet.data.tokenizer import ByteTokenizer
from retnet.model import RetNet

CONFIG = ModelConfig(vocab_size=ByteTokenizer.vocab_size, d_model=64, num_layers=2, num_heads=2)

TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def make_model(directory: Path, *, has_chat_template: bool = False) -> Path:
    """A random model that writes one byte after another, with its tokenizer."""
    model = RetNet(CONFIG, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.backbone.embed_tokens.weight.mul_(4)  # so that the likeliest token is not every one
    save_checkpoint(directory, model, ByteTokenizer())
    if has_chat_template:
        (directory / "chat_template.jinja").write_text(TEMPLATE)
    return directory


@dataclass(frozen=True)
class Served:
    """A server that runs."""

    url: str
    process: subprocess.Popen[bytes]
    key: str | None = None

    def request(self, path: str, body: Any = None) -> Any:
        """What GET says, or POST where there is a body."""
        return json.loads(self.read(path, body)[1])

    def read(
        self, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and headers of what GET says, or POST where there is a body."""
        data = None if body is None else json.dumps(body).encode()
        sent = {"content-type": "application/json", **(headers or {})}
        if self.key is not None:
            sent["authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(self.url + path, data, sent)
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.status, response.read(), dict(response.headers)
        except HTTPError as error:
            with error:
                return error.code, error.read(), dict(error.headers)


@contextmanager
def serving(model: Path, *flags: str, key: str | None = None) -> Iterator[Served]:
    """A server of a model while it is wanted, ready to answer."""
    port = _free_port()
    keys = [] if key is None else ["--api_key", key]
    command = [sys.executable, "-m", "retnet", "serve", "--model", str(model)]
    command += ["--port", str(port), "--threads", "1", *keys, *flags]
    with subprocess.Popen(command) as process:
        served = Served(f"http://127.0.0.1:{port}", process, key)
        try:
            _wait_until_ready(served)
            yield served
        finally:
            process.kill()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _wait_until_ready(served: Served) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert served.process.poll() is None, "the server ended"
        try:
            if served.read("/health")[0] == 200:
                return
        except (URLError, ConnectionError):
            pass
        time.sleep(0.1)
    raise AssertionError("the server did not get ready")
