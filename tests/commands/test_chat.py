"""`retnet chat` as people use it: at a terminal, through a pipe, in one process and the next."""

import asyncio
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest
import torch

import retnet
from retnet.checkpoint import Conversation, StateFormat, load_checkpoint, save_checkpoint
from retnet.cli import main
from retnet.config import preset
from retnet.data.tokenizer import ByteTokenizer
from retnet.generation import prefill
from retnet.model import RetNet
from retnet.serve.sessions import SessionStore
from tests.learnt import save_learnt_model

ROOT = Path(retnet.__file__).parent.parent
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
    "TERM": "dumb",  # where readline sends no escape codes
}
EXACT = ("--dtype", "fp32", "--threads", "1")
GREEDY = ("--temperature", "0", "--max_tokens", "40")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all these chats are: a folder with a model."""
    directory = tmp_path_factory.mktemp("chat")
    save_learnt_model(directory / "model")
    return directory


def command(*flags: str) -> list[str]:
    return [sys.executable, "-m", "retnet", "chat", "--model", "model", *EXACT, *flags]


def piped(folder: Path, said: str, *flags: str) -> subprocess.CompletedProcess[bytes]:
    data = said.encode()
    return subprocess.run(
        command(*flags), cwd=folder, input=data, capture_output=True, env=ENVIRONMENT, timeout=60
    )


def answers(folder: Path, said: str, *flags: str) -> str:
    done = piped(folder, said, *flags)
    assert done.returncode == 0, done.stderr
    assert b"error" not in done.stderr, done.stderr
    return done.stdout.decode()


@dataclass(frozen=True)
class Said:
    """What a chat in this process came to."""

    code: int
    out: str
    err: list[str]


Chat = Callable[..., Said]


@pytest.fixture
def chat(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> Chat:
    """Chats in this process, which need not load torch again, read from a pipe all the same."""

    def run(said: Sequence[str] | bytes, *flags: str) -> Said:
        data = said if isinstance(said, bytes) else "\n".join(said).encode()
        monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(data)))
        code = main(["chat", "--model", "model", *EXACT, *flags])
        out, err = capfdbinary.readouterr()
        return Said(code, out.decode(), err.decode().splitlines())

    monkeypatch.chdir(folder)
    return run


class Terminal:
    """A chat on a terminal of its own."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self.process, self.fd = pty.fork()
        if not self.process:
            os.chdir(folder)
            arguments = command(*flags)
            os.execve(arguments[0], arguments, ENVIRONMENT)
        self.seen = ""

    def expect(self, text: str) -> str:
        """All that comes up to a text and with it."""
        deadline = time.monotonic() + 60
        while text not in self.seen:
            assert time.monotonic() < deadline, f"no {text!r} in {self.seen!r}"
            if select.select([self.fd], [], [], 0.1)[0]:
                self.seen += os.read(self.fd, 4096).decode().replace("\r\n", "\n")
        before, _, self.seen = self.seen.partition(text)
        return before + text

    def send(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def interrupt(self) -> None:
        # Python's readline misses a signal between its prompt and its waiting for a key.
        time.sleep(0.5)
        self.send("\x03")

    def say(self, text: str) -> str:
        """What comes after a line, up to the next prompt."""
        self.send(f"{text}\n")
        self.expect(f"{text}\n")
        return self.expect("\n> ").removesuffix("> ")

    def end(self) -> int:
        """The exit code; negative for a signal."""
        deadline = time.monotonic() + 60
        while not (ended := os.waitpid(self.process, os.WNOHANG))[0]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.close(self.fd)
        return os.waitstatus_to_exitcode(ended[1])


@pytest.fixture
def terminal(folder: Path) -> Iterator[Terminal]:
    """A chat that never ends its answers by itself."""
    chat = Terminal(folder, "--temperature", "0.8", "--seed", "1", "--max_tokens", "null", "--stop")
    chat.expect("> ")
    yield chat
    try:
        os.kill(chat.process, signal.SIGKILL)
        chat.end()
    except (ProcessLookupError, ChildProcessError):
        pass


# --- through a pipe


def test_piped(folder: Path) -> None:
    """Answers alone on stdout; the rest on stderr; neither has escape codes, nor prompts."""
    done = piped(folder, "Question 1?\n/stats\n", *GREEDY)
    assert done.returncode == 0
    assert done.stdout.startswith(b"An answer to it is number")
    assert done.stdout.endswith(b"\n")
    first, *stats = done.stderr.decode().splitlines()
    assert re.fullmatch(
        r"model: [\d,]+ parameters, float32; no chat template: it goes on with your text, "
        "up to a blank line. /help lists commands",
        first,
    )
    number = len(done.stdout.removesuffix(b"\n"))
    assert stats[0] == f"{1 + 12 + number} tokens so far; here 13 read, {number} written"
    assert re.fullmatch(
        rf"last answer: 13 tokens read in .* s, {number} written in .* s \([\d,]+ a second\)",
        stats[1],
    )
    assert re.fullmatch(
        r"state 8.19 kB, whatever the length; a Transformer's 16-bit KV cache would hold "
        r"[\d.]+ kB by now",
        stats[2],
    )
    assert b"\x1b" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "sampling", [("--temperature", "0"), ("--temperature", "0.9", "--seed", "7")]
)
def test_saved_and_loaded_elsewhere(folder: Path, chat: Chat, sampling: tuple[str, ...]) -> None:
    """Another process goes on with the same bytes, and comes to the same state, bit for bit."""
    flags = (*sampling, "--max_tokens", "40")
    unbroken = chat(["Question 1?", "And?", "Question 2?", "/save one"], *flags).out
    first = answers(folder, "Question 1?\n/save between\n", *flags)
    rest = answers(folder, "/load between\nAnd?\nQuestion 2?\n/save two\n", *flags)
    assert first + rest == unbroken
    assert_same(folder, "one", "two")


def test_a_server_goes_on_with_it(folder: Path, chat: Chat) -> None:
    """A saved conversation is a session's file, and a session's file a saved conversation."""
    flags = ("--temperature", "0.9", "--seed", "7", "--max_tokens", "40")
    unbroken = chat(["Question 1?", "/save here", "Question 2?"], *flags).out.splitlines()
    store = SessionStore(load_checkpoint(folder / "model"), None, 2**20)

    async def pass_through() -> bytes:
        await store.from_bytes("a", (folder / "here").read_bytes())
        return await store.to_bytes((await store.fork("a", "b")).id)

    (folder / "there").write_bytes(asyncio.run(pass_through()))
    rest = chat(["/load there", "Question 2?"], *flags).out.splitlines()
    assert rest
    assert unbroken[-len(rest) :] == rest


def test_nobody_reads_on(folder: Path) -> None:
    """`retnet chat | head`: the end, without a traceback."""
    process = subprocess.Popen(
        command("--max_tokens", "null", "--stop"),
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"Question 1?\n")
    process.stdin.flush()
    assert process.stdout.read(10)
    process.stdout.close()
    assert process.wait(timeout=60) == 141
    process.stdin.close()
    assert process.stderr is not None
    assert process.stderr.read().count(b"\n") == 1
    process.stderr.close()


def assert_same(folder: Path, one: str, other: str) -> None:
    """Two files hold the same conversation, bit for bit."""
    files = StateFormat(load_checkpoint(folder / "model"))
    first, second = (files.load(folder / name) for name in (one, other))
    assert first.unread == second.unread
    assert first.state is not None
    assert second.state is not None
    assert torch.equal(first.state.position, second.state.position)
    assert all(map(torch.equal, first.state.layers, second.state.layers))


def test_undo_goes_back_exactly(folder: Path, chat: Chat) -> None:
    """Over answers and whatever else has changed where we stand."""
    said = ["Question 1?", "/save a", "Question 2?", "/undo", "/save b", "/reset", "/undo"]
    said += ["/save c", "", "Question 3?", "/load a", "/undo", "/undo", "/undo", "/save d"]
    flags = ("--temperature", "0.9", "--max_tokens", "40")
    assert not [line for line in chat(said, *flags).err if "error" in line]
    for name in "bcd":
        assert_same(folder, "a", name)


def test_forks(chat: Chat) -> None:
    said = ["Question 1?", "/fork", "Question 2?", "/fork other one", "/switch 1", "Question 2?"]
    said += ["/switch other one", "/switch"]
    done = chat(said, *GREEDY, "--stop", ".")
    first, second, again = done.out.splitlines()
    assert second == again
    assert first.startswith("An answer")
    told = done.err[1:]
    places = [12 + 1 + len(first), 24 + 1 + len(first) + len(second)]
    assert told == [
        f"fork 1 is kept: {places[0]} tokens so far; /switch 1 comes back to here",
        f"fork other one is kept: {places[1] + 1} tokens so far; /switch other one comes back "
        "to here",
        f"at fork 1: {places[0]} tokens so far",
        f"at fork other one: {places[1] + 1} tokens so far",
        f"forks: 1 ({places[0]} tokens), other one ({places[1] + 1} tokens)",
    ]


def test_mistakes_are_one_line_and_the_chat_goes_on(folder: Path, chat: Chat) -> None:
    other = RetNet(preset("tiny", d_model=32), generator=torch.Generator().manual_seed(0))
    StateFormat(other).save(folder / "other", Conversation())
    (folder / "mine.txt").write_text("precious")
    said = [
        "/sav x",
        "/save",
        "/undo",
        "/undo now",
        "/load nowhere",
        "/load other",
        "/load mine.txt",
    ]
    said += [
        "/load ~no-such-user/x",
        "/save mine.txt",
        "/save other",
        "/save no/folder",
        "/switch 3",
        "/load .",
        "/",
    ]
    data = "\n".join(said).encode() + b"\nh\xffllo\n//Question 1?\n/stats\n/exit\nQuestion 2?\n"
    done = chat(data, *GREEDY)
    assert done.code == 0
    expected = [
        "unknown command /sav; did you mean 'save'?; /help lists them, and a text that begins "
        "with / is typed with two",
        "/save needs a FILE after it",
        "there is nothing to undo",
        "/undo takes nothing after it, got 'now'",
        "there is no file nowhere",
        "other is a state of another model",
        "mine.txt is damaged or not safetensors",
        "there is no file ~no-such-user/x",
        "mine.txt is there and no conversation with this model; choose another name",
        "other is there and no conversation with this model; choose another name",
        "could not save the state to no/folder",
        "there is no fork '3'; /fork makes one",
        "there is no file .",
        "unknown command /;",
        "what was typed is not UTF-8, at character 1",
    ]
    told = done.err[1:]
    for line, start in zip(told, expected, strict=False):
        assert line.startswith(f"error: {start}"), line
    assert (folder / "mine.txt").read_text() == "precious"
    # Then it answered, once, and read the text with one of its two slashes.
    number = len(done.out.removesuffix("\n"))
    assert 0 < number <= 40
    assert told[len(expected)].startswith(f"{1 + 13 + number} tokens so far; here 14 read")


def test_several_lines_at_once(chat: Chat) -> None:
    """Of which none is a command."""
    said = ['"""', "/Question 1?", "/An answer", '"""', "/stats"]
    assert " here 25 read" in chat(said, *GREEDY).err[1]


def test_chat_template(folder: Path, chat: Chat) -> None:
    """Messages, with a system text before the first."""
    directory = folder / "with template"
    save_checkpoint(directory, load_checkpoint(folder / "model"), ByteTokenizer())
    (directory / "chat_template.jinja").write_text(
        "{% for each in messages %}{{ each.content }}\n{% endfor %}"
    )
    flags = (*GREEDY, "--model", "with template", "--system", "Question 0?")
    done = chat(["Question 1?", "/stats", ""], *flags)
    assert "; it answers, by its chat template. /help" in done.err[0]
    assert "; here 25 read" in done.err[1]
    assert done.out.startswith("An answer")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--system", "Be brief."], "--system needs a model with a chat template"),
        (["--model", "nowhere"], "--model 'nowhere' is not a folder"),
        (["--top_p", "0"], "--top_p must be in"),
        (["--seed", "-1"], "--seed must be at least 0"),
        (["--stop", ""], "--stop must be a list of strings that are not empty"),
        (["--dtype", "fp8"], "--dtype must be one of auto, fp32, bf16"),
    ],
)
def test_wrong_calls(flags: list[str], message: str, chat: Chat) -> None:
    done = chat([], *flags)
    assert (done.code, done.out) == (2, "")
    [line] = done.err
    assert line.startswith(f"retnet: error: {message}")


# --- at a terminal


def test_ctrl_c_stops_an_answer(folder: Path, terminal: Terminal) -> None:
    """The conversation then holds what was shown, to the character, and goes on."""
    terminal.send("Question 1?\n")
    terminal.expect("Question 1?\n")
    shown = terminal.expect("An") + terminal.expect("answer")
    time.sleep(0.3)
    terminal.send("\x03")
    shown += terminal.expect("[stopped]\n").removesuffix("[stopped]\n").replace("^C", "")
    terminal.expect("> ")
    assert "saved in stopped" in terminal.say("/save stopped")
    model = load_checkpoint(folder / "model")
    conversation = StateFormat(model).load(folder / "stopped")
    if conversation.num_tokens == 1 + 12 + len(shown) - 1:
        shown = shown.removesuffix("\n")  # which stood there so that the note has its own line
    ids = [1, *ByteTokenizer().encode(f"Question 1?\n{shown}")]
    assert conversation.num_tokens == len(ids)
    assert conversation.unread == tuple(ids[-1:])
    assert conversation.state is not None
    _, state = prefill(model, torch.tensor([ids[:-1]]))
    for found, expected in zip(conversation.state.layers, state.layers, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    terminal.send("Question 2?\n")
    terminal.expect("An answer")
    terminal.send("\x03")
    terminal.expect("[stopped]\n> ")
    terminal.send("/exit\n")
    assert terminal.end() == 0


def test_ctrl_c_at_the_prompt(terminal: Terminal) -> None:
    """The first takes back what was typed, the second ends."""
    terminal.send("Quest")
    terminal.expect("Quest")
    terminal.interrupt()
    terminal.expect("[Ctrl-C again, Ctrl-D or /exit ends]\n> ")
    assert terminal.say("/stats").startswith("0 tokens so far")
    terminal.interrupt()
    terminal.expect("[Ctrl-C again, Ctrl-D or /exit ends]\n> ")
    terminal.interrupt()
    assert terminal.end() == 130


def test_sigterm_ends_it_within_an_answer(terminal: Terminal) -> None:
    terminal.send("Question 1?\n")
    terminal.expect("An answer")
    os.kill(terminal.process, signal.SIGTERM)
    assert terminal.end() == -signal.SIGTERM


def test_a_talk(folder: Path) -> None:
    """An answer that is cut, and how to go on; lines that are edited and called back; the end."""
    chat = Terminal(folder, "--temperature", "0", "--max_tokens", "9")
    chat.expect("> ")
    assert chat.say("Question 1?") == "An answer\n[as long as --max_tokens allows; Enter goes on]\n"
    assert chat.say("").startswith(" to it is\n")
    chat.send("/statx\x7fs\n")
    chat.expect("31 tokens so far")
    chat.expect("> ")
    chat.send("\x1b[A\n")
    chat.expect("31 tokens so far")
    chat.expect("> ")
    chat.send("\x04")
    assert chat.end() == 0
