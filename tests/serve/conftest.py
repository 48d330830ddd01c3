"""One server for all tests of a process that ask for nothing special."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI

from retnet.model import RetNet
from tests.serve.running import RunningServer, save_model, started

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '[' + message['role'] + '] ' + message['content'] + eos_token }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant] ' }}{% endif %}"
)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_model(folder)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return folder


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> RetNet:
    """The same weights, to compute with."""
    return save_model(tmp_path_factory.mktemp("same"))


@pytest.fixture(scope="session")
def server(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """In fp32, with 8 slots."""
    sessions = tmp_path_factory.mktemp("sessions")
    arguments = ["--dtype", "fp32", "--slots", "8", "--session_dir", str(sessions)]
    with started(model_folder, arguments) as running:
        yield running


@pytest.fixture
def client(server: RunningServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client
