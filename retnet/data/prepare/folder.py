"""The folder that is made: what is under way in it, and who may write there."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from retnet.data.prepare.units import Part, Unit, record_path
from retnet.data.prepare.writer import PART_SUFFIX, write_text
from retnet.data.shards import HEADER_FILE, Header, is_prepared, read_header

UNFINISHED = "unfinished"

_PLAN_FILE, _LOCK_FILE = "plan.json", "lock"


class WorkFolder:
    """The part of a folder that holds what is complete of an unfinished preparation.

    Attributes:
        out: the folder that is made.
        path: the one in it that is deleted at the end.
        tokenizer: the one in that with the tokenizer's files.
    """

    def __init__(self, out: str | Path) -> None:
        self.out = Path(out)
        self.path = self.out / UNFINISHED
        self.tokenizer = self.path / "tokenizer"

    def require_ours(self) -> None:
        """ValueError where something else is in the way."""
        if self.out.is_dir():
            names = {path.name for path in self.out.iterdir()}
            if not names or names & {UNFINISHED, HEADER_FILE}:
                return
            found = f"holds other files ({sorted(names)[0]})"
        elif not self.out.exists():
            return
        else:
            found = "is a file"
        raise ValueError(f"out {str(self.out)!r} {found}; name a folder that isn't there yet")

    def finished(self, source: Mapping[str, Any]) -> Header | None:
        """The header, where the folder is complete already; None where it is not.

        Raises ValueError where it was made from something else.
        """
        if not is_prepared(self.out):
            return None
        header = read_header(self.out)
        settings = header.source.get("settings", {})
        for name, value in source["settings"].items():
            was = settings.get(name)
            if was != value:
                raise self._made_otherwise(f"{name} was {_shown(was)}, is {_shown(value)}")
        for name in ("tokenizer", "inputs"):
            if header.source.get(name) != source[name]:
                raise self._made_otherwise(f"the {name} had other contents")
        if self.path.is_dir():
            self.delete()
        return header

    def _made_otherwise(self, difference: str) -> ValueError:
        return ValueError(
            f"out {str(self.out)!r} holds prepared tokens already, and {difference}; name another "
            "folder, or delete it"
        )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Inside, no other process prepares here; ValueError where one does."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / _LOCK_FILE).open("wb") as file:
            _lock(file, self.out)
            # Left behind by what was killed.
            for folder in (self.out, self.path):
                for path in folder.glob(f".*{PART_SUFFIX}"):
                    path.unlink(missing_ok=True)
            yield

    def begin(self, plan: Mapping[str, Any]) -> None:
        """Note what is prepared, if it is not what was begun before.

        Raises ValueError, which says what is different, where a part of that is complete.
        """
        path = self.path / _PLAN_FILE
        if path.is_file():
            difference = _difference(_read_plan(path), json.loads(json.dumps(plan)))
            if difference is None:
                return
            if any(self.path.glob("*-*.json")):
                raise ValueError(
                    f"out {str(self.out)!r} holds an unfinished preparation, and {difference}; go "
                    "on with the same, name another folder, or delete it to begin anew"
                )
        # It may have been trained on something else.
        shutil.rmtree(self.tokenizer, ignore_errors=True)
        write_text(path, json.dumps(plan))

    def with_done(self, unit: Unit) -> Unit:
        """A unit with the parts of it that are complete."""
        parts: list[Part] = []
        while (path := record_path(self.path, unit.name, len(parts))).is_file():
            parts.append(Part.from_json(path.read_text(encoding="utf-8")))
        return replace(unit, done=tuple(parts))

    def delete(self) -> None:
        """Delete what was there to go on from."""
        shutil.rmtree(self.path)


def _lock(file: Any, out: Path) -> None:
    try:
        import fcntl
    except ImportError:  # not on this system
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise ValueError(
            f"out {str(out)!r} is written by another `retnet prepare`; wait for it, or end it"
        ) from error


def _read_plan(path: Path) -> dict[str, Any]:
    try:
        plan: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged; delete its folder to begin anew") from error
    return plan


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """What is not the same, in words; None where all is."""
    for name, value in now["settings"].items():
        was = before["settings"].get(name)
        if was != value:
            return f"{name} was {_shown(was)} there, is {_shown(value)}"
    if before["tokenizer"] != now["tokenizer"]:
        return "the tokenizer's files have changed"
    return _input_difference(before["inputs"], now["inputs"])


def _input_difference(before: list[Any], now: list[Any]) -> str | None:
    """What has changed of the inputs, in words; None where nothing has."""
    was, is_now = ({str(each[0]): each for each in inputs} for inputs in (before, now))
    for name in [*is_now, *was]:
        if name not in was:
            return f"{name} is new in the input"
        if name not in is_now:
            return f"{name} is no longer in the input"
        if was[name] != is_now[name]:
            return f"{name} has changed since"
    return None if before == now else "the inputs are in another order"


def _shown(value: object) -> str:
    return "not given" if value is None else repr(value)
