"""How commands show text, sizes and what the library logs."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

# A line break and a tab are shown as they are. Everything else that could steer a terminal becomes
# its picture; U+0080 to U+009F have none.
_PICTURES = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"}
_PICTURES |= {0x7F: "\u2421"} | dict.fromkeys(range(0x80, 0xA0), "\ufffd")


def visible(text: str) -> str:
    """A text that does nothing to a terminal but show: a model writes any byte."""
    return text.translate(_PICTURES)


def write_now(text: str) -> None:
    """Write to stdout at once, in UTF-8 whatever the locale; as it is where no one looks."""
    shown = visible(text) if sys.stdout.isatty() else text
    sys.stdout.buffer.write(shown.encode())
    sys.stdout.buffer.flush()


def bytes_text(number: float) -> str:
    """A number of bytes for people: "524.3 kB"."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:,.0f} bytes" if unit == "bytes" else f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"


class _Lines(logging.Handler):
    """Shows what is logged as lines of a console, above its progress bar."""

    def __init__(self, console: "Console") -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(record.getMessage(), markup=False, style="dim", soft_wrap=True)


@contextmanager
def showing_log(console: "Console") -> Iterator[None]:
    """Inside, what the library logs is shown: which files it left out, why there is no plot."""
    logger, handler = logging.getLogger("retnet"), _Lines(console)
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
