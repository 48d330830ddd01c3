"""Texts on the page, in a browser, against a server that runs."""

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote_plus

from retnet.commands.models import kv_cache_bytes
from retnet.config import ModelConfig
from tests.serve.page.desk import KEY, Desk, get, number, post, session_of
from tests.serve.running import RunningServer

RECORD_LENGTHS = """() => {
    const turns = document.querySelector("#turns");
    window.lengths = new Set();
    const record = () => window.lengths.add(turns.textContent.length);
    new MutationObserver(record).observe(turns, { subtree: true, characterData: true });
}"""


def model_of(server: RunningServer) -> Any:
    """What the server says of its model."""
    return get(server, "/v1/models").json()["data"][0]["retnet"]


def cache_bytes(server: RunningServer) -> int:
    """A token's in the cache of a Transformer of the model's shape."""
    sizes = {name: model_of(server)[name] for name in ("vocab_size", "d_model", "num_layers")}
    return kv_cache_bytes(ModelConfig(**sizes, num_heads=2))


def test_a_text_streams(server: RunningServer, desk: Desk) -> None:
    """It grows as it comes, and is what the API gives at once."""
    desk.set(max_tokens=1000)
    desk.page.evaluate(RECORD_LENGTHS)
    desk.write("Once upon a time")
    body = {"prompt": "Once upon a time", "temperature": 0, "max_tokens": 1000}
    whole = post(server, "/v1/completions", body)
    assert desk.answers() == [whole["choices"][0]["text"]]
    assert desk.page.evaluate("() => window.lengths.size") > 5
    assert desk.page.input_value("#prompt") == ""


def test_texts_are_text(desk: Desk) -> None:
    """Markup in a text is letters."""
    desk.write("<img src=x onerror=alert(1)><b>bold</b>")
    assert desk.text(".yours .words") == "<img src=x onerror=alert(1)><b>bold</b>"
    assert desk.page.locator("#turns img, #turns b").count() == 0


def test_the_figures_are_the_servers(server: RunningServer, desk: Desk) -> None:
    desk.write("Figures")
    desk.write(" and more")
    num_tokens = session_of(server, desk.session)["num_tokens"]
    assert num_tokens == len("Figures and more") + 1 + 2 * 40  # with bos
    assert number(desk.text("#num-tokens")) == num_tokens
    assert desk.text("#turn-tokens") == f"{len(' and more')} + 40"
    state_bytes = model_of(server)["state_bytes"]
    assert desk.text("#state-size") == f"{state_bytes / 1000:.3g} kB"
    assert desk.text("#cache-size") == f"{cache_bytes(server) * num_tokens / 1000:.3g} kB"
    assert f"{state_bytes / 1000:.3g} kB at any length" in desk.text("#memory")
    assert float(desk.text("#rate").replace(",", "")) > 0
    assert re.fullmatch(r"\d+ ms|[\d.]+ s", desk.text("#first"))


def test_the_picture(server: RunningServer, desk: Desk) -> None:
    """The state's line is level; the cache's has the height of its bytes beside the state's."""
    desk.write("Picture this")
    num_tokens = session_of(server, desk.session)["num_tokens"]
    state_bytes = model_of(server)["state_bytes"]
    of_line = "line => ['x1', 'y1', 'x2', 'y2'].map((name) => Number(line.getAttribute(name)))"
    _, ground, x, cache = desk.page.eval_on_selector("line.cache:not(.ahead)", of_line)
    _, start, here, level = desk.page.eval_on_selector("line.state:not(.ahead)", of_line)
    assert (start, here) == (level, x)
    ratio = cache_bytes(server) * num_tokens / state_bytes
    assert abs((ground - cache) / (ground - level) - ratio) < 1e-6 * ratio


def test_stop(server: RunningServer, desk: Desk) -> None:
    """A turn that is stopped is marked, leaves the session as it was, and frees its slot."""
    desk.write("Kept")
    before = session_of(server, desk.session)["num_tokens"]
    desk.begin(" and lost", 1)
    desk.page.click("#stop")
    desk.settle()
    assert "Not kept" in desk.text(".turn.lost .note")
    assert desk.page.locator(".turn").count() == 2 and len(desk.answers()[1]) > 20
    session = session_of(server, desk.session)
    assert (session["num_tokens"], session["busy"]) == (before, False)
    assert number(desk.text("#num-tokens")) == before
    assert desk.page.input_value("#prompt") == " and lost"
    server.until("retnet_requests_running", 0)
    desk.page.click(".turn.lost .dismiss")
    assert desk.page.locator(".turn.lost").count() == 0


def test_what_was_stopped_can_be_kept(server: RunningServer, desk: Desk) -> None:
    """Then the session has read what is shown, and no more."""
    desk.write("Kept")
    before = session_of(server, desk.session)["num_tokens"]
    desk.begin(" and more", 1)
    desk.page.keyboard.press("Escape")
    desk.settle()
    shown = desk.answers()[1]
    desk.page.click(".turn.lost .keep")
    desk.page.locator(".turn.lost").wait_for(state="detached")
    assert desk.answers()[1] == shown and desk.page.input_value("#prompt") == ""
    read = len(b" and more" + shown.encode())  # the tokens are bytes
    assert session_of(server, desk.session)["num_tokens"] == before + read
    assert number(desk.text("#num-tokens")) == before + read


def test_sampling_reaches_the_server(desk: Desk) -> None:
    """What is set is sent as numbers, what is empty is not; greedy twice is the same text."""
    desk.set(top_p=0.9, top_k=7, min_p=0.05, repetition_penalty=1.1, seed=3)
    desk.set(stop="END\n\\n\\n")
    desk.write("Same")
    first = desk.answers()
    desk.take("new")
    desk.write("Same")
    assert desk.answers() == first and len(first[0]) > 0
    sent = desk.asked("/v1/completions")[0]
    expected = {
        "temperature": 0,
        "max_tokens": 40,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.05,
        "repetition_penalty": 1.1,
        "seed": 3,
        "stop": ["END", "\n\n"],
    }
    assert {name: sent[name] for name in expected} == expected
    desk.page.click("#sampling-form [type=reset]")
    desk.write(" again")
    assert not set(desk.asked("/v1/completions")[-1]) & {"top_p", "top_k", "min_p", "seed", "stop"}


def test_seeds(desk: Desk) -> None:
    desk.set(temperature=1.5)
    texts = []
    for seed in (5, 5, 6):
        desk.set(seed=seed)
        desk.take("new")
        desk.write("Dice")
        texts += desk.answers()
    assert texts[0] == texts[1] != texts[2]


def test_errors_are_the_servers_words(server: RunningServer, desk: Desk) -> None:
    desk.set(top_p=7)
    desk.write("Too much")
    body = {"prompt": "Too much", "top_p": 7}
    error = post(server, "/v1/completions", body)["error"]
    assert desk.text("#alert-text") == error["message"] and "top_p" in error["message"]
    assert desk.page.get_attribute("#alert", "role") == "alert"
    assert desk.page.input_value("#prompt") == "Too much"
    assert desk.page.locator(".turn").count() == 0
    desk.set(top_p="")
    desk.write("Fine")
    assert not desk.page.is_visible("#alert") and len(desk.answers()) == 1


def test_a_key(chat_server: RunningServer, new_desk: Callable[..., Desk]) -> None:
    """It is asked for, sent with all that follows, and kept where the tab's end ends it.

    Then a chat: each turn sends what is new in it. Then the server dies while it writes.
    """
    desk = new_desk()
    desk.page.goto(chat_server.url)
    for key in ("a wrong one", KEY):
        desk.see("#key-form", "Authorization")
        desk.page.fill("#key", key)
        desk.page.keyboard.press("Enter")
    desk.see("#model", "tiny")
    assert KEY not in unquote_plus(desk.page.url)
    assert desk.page.evaluate("() => localStorage.length + document.cookie.length") == 0
    chat(chat_server, desk)
    die(chat_server, desk)


def chat(server: RunningServer, desk: Desk) -> None:
    desk.set(temperature=0, max_tokens=20)
    desk.page.click("#system-box summary")
    desk.page.fill("#system", "Be brief.")
    desk.page.fill("#prompt", "Hello")
    desk.page.press("#prompt", "Enter")
    desk.settle()
    said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    body = {"messages": said, "temperature": 0, "max_tokens": 20}
    with server.client(authorization=f"Bearer {KEY}") as client:
        [choice] = client.post("/v1/chat/completions", json=body).json()["choices"]
    assert desk.answers() == [choice["message"]["content"]]
    assert not desk.page.is_visible("#system-box")
    desk.write("And?")
    assert desk.asked("/v1/chat/completions")[1]["messages"] == [
        {"role": "user", "content": "And?"}
    ]


def die(server: RunningServer, desk: Desk) -> None:
    desk.page.click("#mode label:has-text('Text')")
    desk.begin("On", 2)
    server.process.kill()
    desk.settle()
    assert "does not say" in desk.text(".turn.lost .note")
    assert "connection was lost" in desk.text("#alert-text")
    assert len(desk.answers()[2]) > 20 and desk.page.input_value("#prompt") == "On"
    desk.complaints = [each for each in desk.complaints if "ERR_" not in each]  # Chromium's own
