"""Sessions on the page: each goes on where it stood."""

from pathlib import Path

import httpx
import pytest
import torch
from safetensors.torch import load

from tests.serve.page.desk import Desk, number, post, session_of, state_of
from tests.serve.running import RunningServer


def restore(desk: Desk, path: Path) -> str:
    before = desk.session
    desk.page.set_input_files("#session-file", path)
    return desk.next_session(before)


def delete(desk: Desk) -> None:
    desk.page.click("#session-delete")
    desk.page.click("#ask-yes")
    desk.see("#text-title", "New text")


def test_all_that_can_be_done(server: RunningServer, desk: Desk, tmp_path: Path) -> None:
    """New, fork, go on, save, delete, restore."""
    assert desk.take("new", "first") == "first"
    desk.write("It began")
    assert desk.take("fork", "second") == "second"
    assert len(desk.answers()) == 1  # the words of a fork are those of what it was made of
    desk.write("")
    file = tmp_path / "kept (1).safetensors"
    with desk.page.expect_download() as download:
        desk.page.click("#session-save")
    assert download.value.suggested_filename == "second.safetensors"
    download.value.save_as(file)
    saved, kept = load(file.read_bytes()), load(state_of(server, "second"))
    assert all(torch.equal(saved[name], tensor) for name, tensor in kept.items()) and saved
    desk.write(" Then")
    gone_on, num_tokens = desk.answers()[-1], session_of(server, desk.session)["num_tokens"]
    delete(desk)
    assert session_of(server, "second") is None
    assert restore(desk, file) == "kept-1"
    assert "tokens have been read before" in desk.text("#earlier")
    desk.write(" Then")
    assert desk.answers() == [gone_on]
    assert session_of(server, desk.session)["num_tokens"] == num_tokens
    assert session_of(server, "first")["num_tokens"] == len("It began") + 1 + 40


def test_a_fork_goes_its_own_way(server: RunningServer, desk: Desk) -> None:
    desk.take("new", "trunk")
    desk.write("A path")
    desk.take("fork", "branch")
    desk.write(" left")
    desk.page.click("#session-list button:has-text('trunk')")
    desk.see("#text-title", "trunk")
    desk.write(" left")
    trunk = desk.answers()
    desk.page.click("#session-list button:has-text('branch')")
    desk.see("#text-title", "branch")
    assert desk.answers() == trunk  # greedy from the same state
    assert (
        session_of(server, "trunk")["num_tokens"] == session_of(server, desk.session)["num_tokens"]
    )


def test_loading_the_page_again(desk: Desk) -> None:
    """The session, its words and the settings are still there."""
    desk.write("Before")
    session, answers, tokens = desk.session, desk.answers(), desk.text("#num-tokens")
    desk.page.reload()
    desk.see("#text-title", session)
    assert (desk.answers(), desk.text("#num-tokens")) == (answers, tokens)
    assert desk.page.input_value("[name=max_tokens]") == "40"


def test_another_client_goes_on(server: RunningServer, desk: Desk) -> None:
    desk.write("Here")
    body = {"prompt": " and there", "session_id": desk.session, "max_tokens": 5, "temperature": 0}
    assert post(server, "/v1/completions", body)["usage"]["completion_tokens"] == 5
    desk.page.click("#session-list [aria-current]")
    desk.see("#earlier", "went on elsewhere")
    assert number(desk.text("#num-tokens")) == session_of(server, desk.session)["num_tokens"]


def test_another_client_deletes(server: RunningServer, desk: Desk) -> None:
    """The server says that it is gone; a new text can begin."""
    desk.write("Here")
    gone = desk.session
    assert httpx.delete(f"{server.url}/v1/sessions/{gone}").is_success
    desk.write(" no more")
    desk.see("#alert", gone)
    desk.see("#text-title", "New text")
    desk.write("A new one")
    assert desk.session not in (gone, "New text")


def test_a_name_that_is_taken(desk: Desk) -> None:
    desk.write("Mine")
    desk.page.fill("#session-name", desk.session)
    desk.page.click("#session-fork")
    desk.see("#alert", desk.session)
    assert desk.page.input_value("#session-name") == desk.session


def test_replacing_is_asked_about(server: RunningServer, desk: Desk, tmp_path: Path) -> None:
    desk.take("new", "precious")
    desk.write("Much")
    path = tmp_path / "precious.safetensors"
    path.write_bytes(state_of(server, "precious"))
    desk.write(" more")
    desk.page.set_input_files("#session-file", path)
    desk.see("#ask", "Replace the session precious")
    desk.page.click("#ask button[value=no]")
    assert len(desk.answers()) == 2
    desk.page.set_input_files("#session-file", path)
    desk.page.click("#ask-yes")
    desk.see("#earlier", "read before")
    assert number(desk.text("#num-tokens")) == len("Much") + 1 + 40


@pytest.mark.parametrize(
    "data", [b"", b"not a state", b"\xff" * 40], ids=["empty", "text", "bytes"]
)
def test_a_file_that_is_no_session(
    server: RunningServer, desk: Desk, tmp_path: Path, data: bytes
) -> None:
    path = tmp_path / "wrong.safetensors"
    path.write_bytes(data)
    desk.page.set_input_files("#session-file", path)
    desk.page.locator("#alert").wait_for()
    assert len(desk.text("#alert-text")) > 20
    assert session_of(server, "wrong") is None
