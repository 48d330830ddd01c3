"""What a chat is told by lines that begin with "/"."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from retnet.checkpoint import CheckpointError, Conversation, StateFormat
from retnet.commands.models import kv_cache_bytes
from retnet.commands.terminal import bytes_text
from retnet.config import ModelConfig, nearest
from retnet.serve.dialogue import Dialogue

# How often one can go back; each time takes a state's memory.
_MOST_UNDONE = 16


@dataclass(frozen=True)
class _Slash:
    """argument: "" for none, "[NAME]" for one that may be left out."""

    argument: str
    does: str
    do: Callable[[str], str]


def _path(file: str) -> Path:
    return Path(os.path.expanduser(file))  # Path.expanduser raises where there is no such user


class Desk:
    """A dialogue, what can be done with it besides talking, and where it has stood before.

    Attributes:
        is_over: whether it was asked to end.
    """

    def __init__(self, dialogue: Dialogue, files: StateFormat, config: ModelConfig) -> None:
        self.dialogue, self._files, self._config = dialogue, files, config
        self._before: deque[Conversation] = deque(maxlen=_MOST_UNDONE)
        self._forks: dict[str, Conversation] = {}
        self.is_over = False
        self._slashes: Mapping[str, _Slash] = {
            "save": _Slash("FILE", "keep the conversation in a file", self._save),
            "load": _Slash("FILE", "go on with the conversation of a file", self._load),
            "fork": _Slash("[NAME]", "keep a copy of where we stand", self._fork),
            "switch": _Slash(
                "[NAME]", "go on from such a copy; without a name, list", self._switch
            ),
            "undo": _Slash("", "go back to before the last message or change", self._undo),
            "reset": _Slash("", "begin a new conversation", self._reset),
            "stats": _Slash("", "tokens, speed and memory so far", self._stats),
            "help": _Slash("", "this list", self._help),
            "exit": _Slash("", "end, as Ctrl-D does", self._exit),
        }

    def do(self, line: str) -> str:
        """Do what a line that begins with "/" says; what is to be told of it.

        Raises ValueError and OSError where that can't be done; everything is then as it was.
        """
        name, _, argument = line.removeprefix("/").partition(" ")
        slash, argument = self._slashes.get(name), argument.strip()
        if slash is None:
            near = nearest(name, list(self._slashes))
            raise ValueError(
                f"unknown command /{name}{near}; /help lists them, and a text that begins with / "
                "is typed with two"
            )
        if argument and not slash.argument:
            raise ValueError(f"/{name} takes nothing after it, got {argument!r}")
        if not argument and slash.argument.isalpha():
            raise ValueError(f"/{name} needs a {slash.argument} after it")
        return slash.do(argument)

    @contextmanager
    def undoable(self) -> Iterator[None]:
        """What the conversation becomes inside can be undone."""
        before = self.dialogue.conversation
        try:
            yield
        finally:
            if self.dialogue.conversation is not before:
                self._before.append(before)

    def _go_to(self, conversation: Conversation) -> None:
        with self.undoable():
            self.dialogue.conversation = conversation

    def _save(self, file: str) -> str:
        path = _path(file)
        if path.exists():
            self._require_ours(path)
        self._files.save(path, self.dialogue.conversation)
        return f"saved in {path}: {self._position()}"

    def _require_ours(self, path: Path) -> None:
        """ValueError for a file that holds anything else than a conversation with this model."""
        try:
            with path.open("rb") as file:
                self._files.summary(file, name=str(path))
        except (CheckpointError, OSError) as error:
            raise ValueError(
                f"{path} is there and no conversation with this model; choose another name"
            ) from error

    def _load(self, file: str) -> str:
        device = self.dialogue.device
        self._go_to(self._files.load(_path(file)).to(device))
        return f"loaded: {self._position()}"

    def _fork(self, name: str) -> str:
        name = name or next(str(n) for n in range(1, 2**31) if str(n) not in self._forks)
        self._forks[name] = self.dialogue.conversation
        return f"fork {name} is kept: {self._position()}; /switch {name} comes back to here"

    def _switch(self, name: str) -> str:
        if not name:
            each = (f"{name} ({fork.num_tokens:,} tokens)" for name, fork in self._forks.items())
            return f"forks: {', '.join(each) or 'none; /fork makes one'}"
        if name not in self._forks:
            names = list(self._forks)
            known = f"there are {', '.join(names)}" if names else "/fork makes one"
            raise ValueError(f"there is no fork {name!r}{nearest(name, names)}; {known}")
        self._go_to(self._forks[name])
        return f"at fork {name}: {self._position()}"

    def _undo(self, _: str) -> str:
        if not self._before:
            raise ValueError("there is nothing to undo")
        self.dialogue.conversation = self._before.pop()
        return f"undone: {self._position()}"

    def _reset(self, _: str) -> str:
        self._go_to(Conversation())
        return "a new conversation; /undo goes back to the old one"

    def _stats(self, _: str) -> str:
        dialogue, figures = self.dialogue, self.dialogue.figures
        tokens = dialogue.conversation.num_tokens
        lines = [
            f"{self._position()}; here {dialogue.num_read:,} read, {dialogue.num_written:,} written"
        ]
        if figures is not None:
            rate = figures.written_per_s
            fast = "" if rate is None else f" ({rate:,.0f} a second)"
            lines.append(
                f"last answer: {figures.num_read:,} tokens read in {figures.read_s:.2f} s, "
                f"{figures.num_written:,} written in {figures.write_s:.2f} s{fast}"
            )
        cache = bytes_text(kv_cache_bytes(self._config) * tokens)
        lines.append(
            f"state {bytes_text(self._files.state_bytes)}, whatever the length; a Transformer's "
            f"16-bit KV cache would hold {cache} by now"
        )
        return "\n".join(lines)

    def _help(self, _: str) -> str:
        lines = [
            f"  /{f'{name} {slash.argument}':<14} {slash.does}"
            for name, slash in self._slashes.items()
        ]
        return "\n".join(
            [
                *lines,
                "  Enter alone lets the model go on, Ctrl-C stops it.",
                '  Several lines at once: """ on a line before them and on one after them.',
                "  A text that begins with / is typed with two.",
            ]
        )

    def _exit(self, _: str) -> str:
        self.is_over = True
        return ""

    def _position(self) -> str:
        number = self.dialogue.conversation.num_tokens
        return f"{number:,} token{'' if number == 1 else 's'} so far"
