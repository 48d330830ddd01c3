"""Flags: declared from the fields of dataclasses, read from the command line and a YAML file.

jsonargparse converts and checks the values; what it says of a wrong one is put in one line here.
"""

import re
import sys
import textwrap
from argparse import SUPPRESS, Action, ArgumentError
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser, DefaultHelpFormatter, get_loader

from retnet.config import nearest

Values = Mapping[str, Any]

# Those that a configuration file can't set.
_OF_THE_LINE = ("config", "print_config")


class UsageError(ValueError):
    """A command line or configuration file that doesn't do."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """A subcommand.

    Attributes:
        summary: what it does, in a line.
        usage: what may follow its name.
        details: what its help page says besides.
        add_flags: declares its flags.
        settings: given what a command line and its configuration file set, settings that count
            where these have none.
        run: does it, given a value for every flag; the exit code.
    """

    summary: str
    usage: str
    details: str
    add_flags: Callable[[ArgumentParser], None]
    run: Callable[[Values], int]
    settings: Callable[[Values], Values] = lambda _: {}


class _Help(DefaultHelpFormatter):
    """A help text as it was written: types are in the metavars, defaults in the text."""

    def _get_help_string(self, action: Action) -> str:
        return action.help or ""

    def _format_action_invocation(self, action: Action) -> str:
        # jsonargparse gives lists a second flag, "--flag+", that appends; one is enough to read.
        shown = copy(action)
        shown.option_strings = [each for each in action.option_strings if not each.endswith("+")]
        return super()._format_action_invocation(shown)


def make_parser(name: str, command: Command) -> ArgumentParser:
    """The parser of a subcommand, all its flags declared."""
    parser = ArgumentParser(
        prog=f"retnet {name}",
        usage=f"retnet {name} {command.usage}",
        description=f"{command.summary[0].upper()}{command.summary[1:]}. {command.details}".strip(),
        formatter_class=_Help,
        exit_on_error=False,
        allow_abbrev=False,
        print_config=None,  # its own would print a null for every flag that is not set
    )
    add_flag(parser, "config", str | None, None, "YAML file of flags; those given here win", "FILE")
    text = "print all that was chosen, as such a file, and end"
    parser.add_argument("--print_config", action="store_true", help=text)
    command.add_flags(parser)
    return parser


def add_flag(
    parser: Any, name: str, kind: Any, default: Any, text: str, metavar: str | None = None
) -> None:
    """Declare `--name`. parser: a parser or a group of one; kind: a type, as in annotations."""
    shown = "" if default is None else f" (default: {_shown(default)})"
    parser.add_argument(
        f"--{name}",
        type=kind,
        default=default,
        help=text + shown,
        metavar=metavar or _metavar(kind),
    )


def add_switch(parser: Any, name: str, text: str) -> None:
    """Declare `--name`, which may be followed by true or false; without it, it is false."""
    parser.add_argument(
        f"--{name}",
        type=bool,
        nargs="?",
        const=True,
        default=False,
        help=text,
        metavar=_metavar(bool),
    )


def add_fields(
    parser: ArgumentParser, config: type, *, prefix: str, about: str, unset: bool = False
) -> None:
    """Declare `--prefix.field` for each field of a dataclass, explained as its docstring does.

    unset: leave the flags without a default, so that only those given have a value.
    """
    group = parser.add_argument_group(prefix, about)
    hints, texts = get_type_hints(config), attribute_texts(config)
    for field in fields(config):
        if is_dataclass(hints[field.name]):
            continue  # has a group of its own
        default = None if unset else field.default
        hint = hints[field.name] | None if unset else hints[field.name]
        text = texts.get(field.name, "").removesuffix(".").replace("None", "null")
        add_flag(group, f"{prefix}.{field.name}", hint, default, text)


def attribute_texts(config: type) -> dict[str, str]:
    """What the "Attributes:" section of a class's docstring says of each."""
    _, _, section = textwrap.dedent(f"    {config.__doc__}").partition("Attributes:\n")
    texts: dict[str, str] = {}
    name = ""
    for line in textwrap.dedent(section).splitlines():
        start = re.match(r"(\w+): (.*)", line)
        if start:
            name, texts[start[1]] = start[1], start[2]
        elif name and line.strip():
            texts[name] += " " + line.strip()
    return texts


def read_flags(
    parser: ArgumentParser,
    arguments: Sequence[str],
    settings: Callable[[Values], Values] = lambda _: {},
) -> dict[str, Any]:
    """A value for every flag: from the command line, else the file of --config, else from
    `settings`, which is given the former, else the default.

    Names may have '-' for '_', there and in the file. Prints the configuration and exits where that
    was asked for; so does --help. Raises UsageError for what is not known, and for values of the
    wrong type.
    """
    arguments = list(_with_known_names(parser, arguments))
    values = parser.get_defaults().as_flat().__dict__
    given = _parsed(parser, lambda: parser.parse_args(arguments, defaults=False))
    for action in parser._actions:
        if not action.option_strings and given[action.dest] == action.default:
            del given[action.dest]  # argparse gives what has no flag its default; a file may say it
    if given.get("config"):
        given = _read_file(parser, Path(given["config"])) | given
    values |= settings(given)
    values |= given
    if values["print_config"]:
        sys.stdout.write(_as_file(parser, values))
        raise SystemExit(0)
    return values


def group_values(values: Values, prefix: str) -> dict[str, Any]:
    """The values of the flags `--prefix.name`, by name; those without a value left out."""
    dotted = f"{prefix}."
    return {
        name.removeprefix(dotted): value
        for name, value in values.items()
        if name.startswith(dotted) and value is not None
    }


@contextmanager
def naming_flags(flags: Mapping[str, str]) -> Iterator[None]:
    """Errors of the library begin with the name of an argument; make that the flag's.

    flags: argument -> flag.
    """
    try:
        yield
    except ValueError as error:
        name, space, rest = str(error).partition(" ")
        if name not in flags:
            raise
        raise UsageError(f"{flags[name]}{space}{rest}") from error


def _with_known_names(parser: ArgumentParser, arguments: Sequence[str]) -> Iterator[str]:
    """The arguments, flags spelled as they were declared; UsageError for those that were not."""
    known = {_one_spelling(name): name for name in parser._option_string_actions}
    are_flags = True
    for argument in arguments:
        are_flags = are_flags and argument != "--"
        if not (are_flags and argument.startswith("--")):
            yield argument
            continue
        name, equals, value = argument.partition("=")
        if _one_spelling(name) not in known:
            near = nearest(name, list(known.values()))
            raise UsageError(f"unknown flag {name}{near}; see {parser.prog} --help")
        yield f"{known[_one_spelling(name)]}{equals}{value}"


def _one_spelling(name: str) -> str:
    """The name of a flag or setting with '_' for '-': "--batch-size" -> "__batch_size"."""
    return name.replace("-", "_")


def _parsed(parser: ArgumentParser, parse: Callable[[], Any]) -> dict[str, Any]:
    try:
        return dict(parse().as_flat().__dict__)
    except ArgumentError as error:
        raise UsageError(_in_one_line(parser, str(error))) from error


def _in_one_line(parser: ArgumentParser, message: str) -> str:
    """jsonargparse's words about a wrong value, which may take ten lines, in one."""
    extra = re.match(r"unrecognized arguments: (.*)", message, re.DOTALL)
    if extra:
        return f"what is {extra[1]!r}? Put quotes around a text that has spaces in it"
    key = re.match(r'Parser key "(.+?)"', message)
    got = re.search(r"(?:Given value|Got value): (.*)", message, re.DOTALL)
    action = next((each for each in parser._actions if key and each.dest == key[1]), None)
    kind = getattr(action, "_typehint", getattr(action, "type", None))
    if action is None or got is None or kind is None:
        return " ".join(message.split())
    name = action.option_strings[0] if action.option_strings else action.dest
    return f"{name} must be {_words(kind)}, got {got[1]!r}"


def _read_file(parser: ArgumentParser, path: Path) -> dict[str, Any]:
    """The values in a configuration file, checked, by dotted name."""
    try:
        # jsonargparse takes a mapping without values for a text; not where a comment follows.
        tree = get_loader("yaml")(path.read_text(encoding="utf-8") + "\n#")
    except OSError as error:
        raise UsageError(f"cannot read --config {str(path)!r}: {error.strerror}") from error
    except Exception as error:  # whatever its YAML parser raises
        reason = " ".join(str(error).split())
        raise UsageError(f"--config {str(path)!r} is not YAML: {reason}") from error
    if tree is not None and not isinstance(tree, dict):
        raise UsageError(
            f"--config {str(path)!r} must hold settings such as 'preset: tiny', got {tree!r}"
        )
    try:
        settings = dict(_flat(tree or {}, _settings(parser)))
        return _parsed(parser, lambda: parser.parse_object(settings, defaults=False))
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def _as_file(parser: ArgumentParser, values: Values) -> str:
    """The values as a configuration file; what is null is left out."""
    settings = {name: values[name] for name in _settings(parser) if values[name] is not None}
    return str(parser.dump(parser.parse_object(settings, defaults=False)))


def _settings(parser: ArgumentParser) -> list[str]:
    """The names of what a configuration file may set."""
    return [
        action.dest
        for action in parser._actions
        if action.default is not SUPPRESS and action.dest not in _OF_THE_LINE
    ]


def _flat(tree: Mapping[Any, Any], known: Sequence[str], prefix: str = "") -> Iterator[Any]:
    """The leaves of nested settings with their dotted names, each of which must be known."""
    for key, value in tree.items():
        name = f"{prefix}{_one_spelling(str(key))}"
        is_group = any(each.startswith(f"{name}.") for each in known)
        if is_group and isinstance(value, dict):
            yield from _flat(value, known, f"{name}.")
        elif is_group and value is not None:
            raise UsageError(f"{name} must hold settings by name, got {value!r}")
        elif not is_group and name not in known:
            raise UsageError(f"unknown setting {name!r}{nearest(name, known)}")
        elif not is_group:
            yield name, value


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _members(kind: Any) -> tuple[Any, ...]:
    """The members of a union but None, or the type itself."""
    members = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    return tuple(each for each in members if each is not NoneType)


_WORDS = {int: "an integer", float: "a number", bool: "true or false", str: "a text"}
_METAVARS = {int: "N", float: "X", bool: "{true,false}", str: "TEXT"}


def _words(kind: Any) -> str:
    """A type in words: "an integer or a text"."""
    return " or ".join(map(_word, _members(kind)))


def _word(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(get_args(kind))
    if get_origin(kind) is not None:
        return "a list such as [0.9, 0.98]"
    return _WORDS.get(kind, str(kind))


def _metavar(kind: Any) -> str:
    """A type as a metavar: "N", "{fp32,bf16}"."""
    return "|".join(map(_one_metavar, _members(kind)))


def _one_metavar(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "{" + ",".join(get_args(kind)) + "}"
    return _METAVARS.get(kind, "[X,...]")
