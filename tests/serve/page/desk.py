"""A page that is open in a browser, as its user has it before them."""

import json
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.serve.running import PATIENCE_S, RunningServer

KEY = "a secret"
LONG = 20_000  # tokens: no turn gets so far before a test stops it


@dataclass
class Desk:
    """A page, and what it has asked for and complained of.

    page: playwright's.
    """

    page: Any
    requests: list[Any] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.set_default_timeout(20_000)
        self.page.on("request", lambda request: self.requests.append(request))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda message: self.complaints.append(message.text))

    def open(self, server: RunningServer) -> "Desk":
        self.page.goto(server.url)
        self.see("#model", "parameters")
        return self

    def see(self, selector: str, text: Any = None) -> None:
        """Wait until there is such a thing, with such a text in it."""
        self.page.locator(selector, has_text=text).first.wait_for()

    def settle(self) -> None:
        """Wait until no turn runs."""
        self.page.locator("#stop").wait_for(state="hidden")

    def write(self, prompt: str) -> None:
        """A turn, from its beginning to its end."""
        self.page.fill("#prompt", prompt)
        self.page.click("#write")
        self.settle()

    def begin(self, prompt: str, turn: int) -> None:
        """Begin a long turn, and wait until some of it is there."""
        self.set(max_tokens=LONG)
        self.page.fill("#prompt", prompt)
        self.page.click("#write")
        self.page.wait_for_function(
            "turn => document.querySelectorAll('.models .words')[turn]?.textContent.length > 20",
            arg=turn,
        )

    def set(self, **fields: object) -> None:
        """Fill sampling controls."""
        for name, value in fields.items():
            self.page.fill(f"[name={name}]", str(value))

    def take(self, action: str, name: str = "") -> str:
        """Click a button of the sessions; the session that is shown then."""
        before = self.session
        self.page.fill("#session-name", name)
        self.page.click(f"#session-{action}")
        return self.next_session(before)

    def next_session(self, before: str) -> str:
        """Wait until another session is shown; its name."""
        self.page.wait_for_function(
            "before => document.querySelector('#text-title').textContent !== before", arg=before
        )
        return self.session

    @property
    def session(self) -> str:
        """The session that is shown."""
        return self.text("#text-title")

    def text(self, selector: str) -> str:
        """What an element says."""
        return str(self.page.text_content(selector))

    def answers(self) -> list[str]:
        """What the model wrote, turn by turn."""
        return list(self.page.locator(".models .words").all_text_contents())

    def focused(self) -> str:
        """The id of the element that keys go to, or its name."""
        script = "() => document.activeElement.id || document.activeElement.name"
        return str(self.page.evaluate(script))

    def asked(self, path: str) -> list[Any]:
        """The bodies of what was sent to a path."""
        return [json.loads(each.post_data) for each in self.requests if each.url.endswith(path)]


def number(text: str) -> int:
    return int(text.replace(",", ""))


def get(server: RunningServer, path: str, **headers: str) -> httpx.Response:
    """What the server has there."""
    return httpx.get(f"{server.url}{path}", headers=headers, timeout=PATIENCE_S)


def post(server: RunningServer, path: str, body: object) -> Any:
    """What the server says to a body."""
    return httpx.post(f"{server.url}{path}", json=body, timeout=PATIENCE_S).json()


def session_of(server: RunningServer, name: str) -> Any:
    """What the server says of a session; None where there is none of that name."""
    response = get(server, f"/v1/sessions/{name}")
    return None if response.status_code == 404 else response.json()


def state_of(server: RunningServer, name: str) -> bytes:
    """A session's file."""
    return get(server, f"/v1/sessions/{name}/state").content
