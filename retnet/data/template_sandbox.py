"""Templates that came with a model, run without trust: Jinja's sandbox, with bounds of its own."""

import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from jinja2 import Environment, Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

# Ranges of a rendering may hold so many numbers together, each as often as it is gone through.
MOST_NUMBERS = 100_000
# So many characters may a rendering have beyond four times those of the texts that went in.
MOST_CHARACTERS = 2**20
# So long may the result of one operation be.
MOST_AT_ONCE = 2**24


class TemplateText:
    """A template's source, compiled.

    Attributes:
        constants: the strings that its expressions hold.
    """

    def __init__(self, source: str) -> None:
        """ValueError where it isn't Jinja."""
        environment = _environment()
        try:
            parsed = environment.parse(source)
            self._template: Template = environment.from_string(source)
        except (TemplateError, RecursionError, MemoryError) as error:
            raise ValueError(f"the chat template can't be read: {_reason(error)}") from error
        values = {each.value for each in parsed.find_all(nodes.Const)}
        self.constants = frozenset(value for value in values if isinstance(value, str))

    def render(self, variables: Mapping[str, Any], most_characters: int) -> str:
        """Its text; ValueError where it refuses, fails, or passes a bound."""
        pieces, num_characters = [], 0
        try:
            for piece in self._template.generate(**variables, range=_Numbers().range):
                pieces.append(piece)
                num_characters += len(piece)
                if num_characters > most_characters:
                    raise SecurityError(f"it writes more than {most_characters:,} characters")
        except Exception as error:  # whatever an expression of it may raise
            raise ValueError(f"the chat template refuses this: {_reason(error)}") from error
        return "".join(pieces)


class _Environment(ImmutableSandboxedEnvironment):
    """Refuses what would take memory without end in one operation."""

    intercepted_binops = frozenset(["*", "**", "+"])

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        sizes = [len(each) for each in (left, right) if isinstance(each, str | list | tuple)]
        numbers = [abs(each) for each in (left, right) if isinstance(each, int | float)]
        if operator == "*" and sizes and numbers:
            sizes = [sizes[0] * max(1, int(numbers[0]))]
        is_large = any(number > 2**64 for number in numbers)
        if sum(sizes) > MOST_AT_ONCE or is_large or (operator == "**" and max(numbers) > 64):
            raise SecurityError(f"the result of {operator!r} would be too large")
        return super().call_binop(context, operator, left, right)


class _Numbers:
    """What ranges have left in one rendering."""

    def __init__(self) -> None:
        self._left = MOST_NUMBERS

    def range(self, *bounds: int) -> "_Range":
        return _Range(range(*bounds), self)

    def take(self, number: int) -> None:
        self._left -= number
        if self._left < 0:
            raise SecurityError(f"it goes through more than {MOST_NUMBERS:,} numbers")


class _Range:
    """A range that tells whenever it is gone through."""

    def __init__(self, numbers: range, left: _Numbers) -> None:
        self._numbers, self._left = numbers, left

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> int:
        return self._numbers[index]

    def __iter__(self) -> Iterator[int]:
        self._left.take(len(self))
        return iter(self._numbers)


class _Generation(Extension):
    """{% generation %} marks what a model is trained on; what stands in it is just written."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> Environment:
    """As Transformers gives it to templates."""
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
    # Jinja's own writes for HTML.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:500] or type(error).__name__
