"""A server that runs, a browser, and pages that must ask nobody else and complain of nothing."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serve.page.desk import Desk
from tests.serve.process import Served, make_model, serving

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


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A model without a chat template, and sessions in a folder."""
    folder = tmp_path_factory.mktemp("served")
    model = make_model(folder / "small")
    with serving(model, "--session_dir", str(folder / "sessions")) as served:
        yield served


@pytest.fixture
def chat_server(tmp_path: Path) -> Iterator[Served]:
    """A model with a chat template, behind a key."""
    model = make_model(tmp_path / "talker", has_chat_template=True)
    with serving(model, key="a secret") as served:
        yield served


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
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
def desk(server: Served, new_desk: Callable[..., Desk]) -> Desk:
    """A page with a short greedy turn set."""
    desk = new_desk().open(server)
    desk.set(temperature=0, max_tokens=40)
    return desk
