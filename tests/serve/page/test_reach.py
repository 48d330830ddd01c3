"""Whom the page reaches: by keys alone, by ear, on any screen."""

import pytest

from tests.serve.page.desk import LONG, Desk, session_of
from tests.serve.running import RunningServer

RECORD_SPOKEN = """() => {
    const region = document.querySelector("#spoken");
    window.said = [];
    new MutationObserver(() => window.said.push(region.textContent))
      .observe(region, { childList: true });
}"""

UNLABELLED = """() => [...document.querySelectorAll("input, textarea, button")]
    .filter((each) => each.checkVisibility() && !each.labels?.length)
    .filter((each) => !each.ariaLabel && !each.textContent.trim())
    .map((each) => each.outerHTML)"""


def tab_to(desk: Desk, target: str) -> None:
    """Press Tab until a control has the focus, which can be seen."""
    for _ in range(80):
        if desk.focused() == target:
            break
        desk.page.keyboard.press("Tab")
    else:
        raise AssertionError(f"Tab does not reach {target}")
    style = "() => getComputedStyle(document.activeElement).outlineStyle"
    assert desk.page.evaluate(style) == "solid"


def press(desk: Desk, target: str, key: str = "Enter") -> None:
    tab_to(desk, target)
    desk.page.keyboard.press(key)


def test_writing_by_keys(desk: Desk) -> None:
    """From a page that has just been opened: each control can be reached, and be seen to be."""
    desk.page.reload()
    desk.see("#model", "parameters")
    assert desk.focused() == "prompt"
    desk.page.keyboard.type("By keys")
    desk.page.keyboard.press("Control+Enter")
    desk.settle()
    assert len(desk.answers()) == 1
    for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "stop"):
        tab_to(desk, name)
    press(desk, "max_tokens", "Control+A")
    desk.page.keyboard.type(str(LONG))
    press(desk, "write")
    assert desk.focused() == "stop"
    desk.page.wait_for_function("() => document.querySelectorAll('.models .words')[1]?.textContent")
    desk.page.keyboard.press("Escape")
    desk.settle()
    assert desk.focused() == "prompt"
    assert desk.page.locator(".turn.lost").count() == 1


def test_sessions_by_keys(server: RunningServer, desk: Desk) -> None:
    """A fork, a deletion that is thought better of, and one that isn't."""
    desk.write("By keys")
    first = desk.session
    press(desk, "session-fork")
    second = desk.next_session(first)
    press(desk, "session-delete")
    desk.see("#ask", second)
    desk.page.keyboard.press("Escape")
    desk.page.locator("#ask").wait_for(state="hidden")
    assert session_of(server, second)
    press(desk, "session-delete")
    press(desk, "ask-yes")
    assert desk.next_session(second) == "New text"
    assert session_of(server, second) is None
    assert session_of(server, first)


def test_what_is_read_aloud(desk: Desk) -> None:
    """A few announcements a turn, not each token; the last says how it ended."""
    desk.set(max_tokens=400)
    desk.page.evaluate(RECORD_SPOKEN)
    desk.write("Aloud")
    said = desk.page.evaluate("() => window.said")
    assert said[0] == "Writing." and said[-1].endswith("The end.")
    assert len(said) < 10
    assert desk.page.evaluate(UNLABELLED) == []


@pytest.mark.parametrize("width", [320, 390, 768, 1440])
def test_fits(desk: Desk, width: int) -> None:
    """Nothing is wider than the screen."""
    desk.page.set_viewport_size({"width": width, "height": 800})
    desk.write("x" * 300)
    assert desk.page.evaluate("() => document.documentElement.scrollWidth") <= width


def test_dark(desk: Desk) -> None:
    """Letters are light where the paper is dark, as the user's system has it."""
    script = """() => ["backgroundColor", "color"].map((name) =>
        getComputedStyle(document.body)[name].match(/[0-9]+/g).reduce((sum, each) => sum + +each, 0)
    )"""
    for scheme, is_dark in (("light", False), ("dark", True)):
        desk.page.emulate_media(color_scheme=scheme)
        paper, ink = desk.page.evaluate(script)
        assert (paper < ink) == is_dark
