"""The files of the page: what they are sent as, and that there are no others."""

import json
import re

import pytest

from tests.serve.process import Served


def test_headers(server: Served) -> None:
    """A policy that allows this server alone, types that are meant, nothing kept unasked."""
    status, body, headers = server.read("/")
    assert status == 200 and b"<title>retnet</title>" in body
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert headers["content-security-policy"].startswith("default-src 'self'; ")
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-cache"
    assert not re.search(rb"<style|<script>| style=| on\w+=", body)
    for name in set(re.findall(r'static/([\w.]+)"', body.decode())):
        assert server.read(f"/static/{name}")[0] == 200
    kind = server.read("/static/main.js")[2]["content-type"]
    assert kind == "text/javascript; charset=utf-8"


def test_static_files_are_asked_for_again(server: Served) -> None:
    headers = server.read("/static/style.css")[2]
    again = server.read("/static/style.css", headers={"if-none-match": headers["etag"]})
    assert again[:2] == (304, b"")
    assert server.read("/static/style.css", headers={"if-none-match": '"old"'})[0] == 200


@pytest.mark.parametrize("name", ["nothing.js", "..%2fpage.py", "%2e%2e/page.py", "__init__.py"])
def test_no_other_files(server: Served, name: str) -> None:
    status, body, _ = server.read(f"/static/{name}")
    assert status == 404 and json.loads(body)["error"]["message"]
