"""A server that runs, a browser, and pages that must ask nobody else and complain of nothing."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from retnet.checkpoint import save_checkpoint
from retnet.data.tokenizer import ByteTokenizer
from tests.serve.page.desk import KEY, Desk
from tests.serve.running import RunningServer, save_model, started

_CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
]
# Chromium says so itself of an answer that isn't 2xx, whatever the page makes of it.
_OF_ANSWERS = "Failed to load resource: the server responded with"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A model without a chat template, and sessions in a folder."""
    folder = tmp_path_factory.mktemp("page")
    model = save_model(folder / "small", tie_embeddings=False)
    with torch.no_grad():  # so that a greedy text is letters and has no end
        model.lm_head.weight[[not 32 < token - 3 < 127 for token in range(259)]] = 0
    save_checkpoint(folder / "small", model, ByteTokenizer())
    arguments = ["--dtype", "fp32", "--session_dir", str(folder / "sessions")]
    with started(folder / "small", arguments) as running:
        yield running


@pytest.fixture
def chat_server(model_folder: Path) -> Iterator[RunningServer]:
    """A model with a chat template, behind a key."""
    with started(model_folder, ["--dtype", "fp32", "--api_key", KEY]) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium; for a module only, since playwright's event loop keeps others from running."""
    playwright = pytest.importorskip("playwright.sync_api")
    if _CHROMIUM is None:
        pytest.skip("needs Chromium (on Debian: apt-get install chromium)")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=_CHROMIUM, args=_FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def new_desk(browser: Any) -> Iterator[Callable[..., Desk]]:
    """Opens pages, each in a context of its own."""
    desks: list[Desk] = []

    def make(**settings: Any) -> Desk:
        desks.append(Desk(browser.new_page(**settings)))
        return desks[-1]

    yield make
    for desk in desks:
        home = "/".join(desk.page.url.split("/")[:3]) + "/"
        desk.page.close()
        assert not [each.url for each in desk.requests if not each.url.startswith((home, "blob:"))]
        assert not [each for each in desk.complaints if not each.startswith(_OF_ANSWERS)]


@pytest.fixture
def desk(server: RunningServer, new_desk: Callable[..., Desk]) -> Desk:
    """A page with a short greedy turn set."""
    desk = new_desk().open(server)
    desk.set(temperature=0, max_tokens=40)
    return desk
