"""The files of the page: what they are sent as, and that there are no others."""

import re

import httpx
import pytest

from tests.serve.page.desk import get
from tests.serve.running import RunningServer


def test_headers(server: RunningServer) -> None:
    """A policy that allows this server alone, types that are meant, nothing kept unasked."""
    response = get(server, "/")
    assert response.status_code == 200 and "<title>retnet</title>" in response.text
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'self'; ") and "unsafe" not in policy
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["cache-control"] == "no-cache"
    assert not re.search(r"<style|<script>| style=| on\w+=", response.text)


def test_all_that_it_names_is_there(server: RunningServer) -> None:
    """Files that the page names, and modules that modules name."""
    names = set(re.findall(r'static/([\w.]+)"', get(server, "/").text))
    assert {"main.js", "style.css", "icon.svg"} <= names
    kinds = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
    seen = set()
    while names - seen:
        name = (names - seen).pop()
        seen.add(name)
        response = get(server, f"/static/{name}")
        kind = kinds[name[name.index(".") :]]
        assert response.headers["content-type"] == f"{kind}; charset=utf-8", name
        names |= set(re.findall(r'from "\./(\w+\.js)"', response.text))
    assert len(seen) > 10


def test_files_are_asked_for_again(server: RunningServer) -> None:
    path = "/static/style.css"
    tag = get(server, path).headers["etag"]
    again = get(server, path, **{"if-none-match": tag})
    assert (again.status_code, again.content) == (304, b"")
    assert get(server, path, **{"if-none-match": '"old"'}).status_code == 200
    assert httpx.head(server.url + path).headers["etag"] == tag


@pytest.mark.parametrize("name", ["nothing.js", "..%2fpage.py", "%2e%2e/page.py", "__init__.py"])
def test_no_other_files(server: RunningServer, name: str) -> None:
    response = get(server, f"/static/{name}")
    assert response.status_code == 404 and response.json()["error"]["message"]
