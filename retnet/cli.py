"""The command `retnet`. What is wrong with a call is one line on stderr and exit code 2."""

import os
import sys
from collections.abc import Callable, Sequence

_OVERVIEW = """\
usage: retnet COMMAND [flags]

Retentive networks: train one, write with one, look at its sizes, measure it here.

commands:
{commands}

retnet COMMAND --help explains its flags. --config FILE reads them from YAML.
Exit codes: 0, 2 for a wrong call or input (RETNET_TRACEBACK=1 shows where), 130 after Ctrl-C.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `retnet` with these arguments, or the program's own; the exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    _open_closed_streams()
    return exit_code(lambda: _run(given))


def exit_code(work: Callable[[], int]) -> int:
    """The exit code of some work, after one line on stderr where it raised what callers cause."""
    try:
        code = work()
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader has seen enough: `retnet generate ... | head`
        _discard_stdout()
        return 141
    except (ValueError, OSError, MemoryError) as error:
        if os.environ.get("RETNET_TRACEBACK"):
            raise
        sys.stderr.write(f"retnet: error: {_in_one_line(error)}\n")
        _discard_stdout()
        return 2


def _open_closed_streams() -> None:
    """What is written where nothing is open (`retnet ... >&-`) goes nowhere."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            setattr(sys, name, os.fdopen(nowhere, "w", encoding="utf-8"))


def _run(arguments: Sequence[str]) -> int:
    # Here, not above: an interruption while they load is then caught as any other.
    from retnet import __version__
    from retnet.commands import (
        bench,
        chat,
        convert,
        evaluate,
        generate,
        inspect,
        plot,
        prepare,
        reproduce,
        serve,
        train,
    )
    from retnet.commands.flags import UsageError, make_parser, read_flags
    from retnet.config import nearest

    commands = {
        "prepare": prepare.COMMAND,
        "train": train.COMMAND,
        "generate": generate.COMMAND,
        "chat": chat.COMMAND,
        "serve": serve.COMMAND,
        "plot": plot.COMMAND,
        "inspect": inspect.COMMAND,
        "eval": evaluate.COMMAND,
        "reproduce": reproduce.COMMAND,
        "convert": convert.COMMAND,
        "bench": bench.COMMAND,
    }
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        listed = "\n".join(f"  {each:<9} {command.summary}" for each, command in commands.items())
        sys.stdout.write(_OVERVIEW.format(commands=listed))
        return 0
    if name == "--version":
        sys.stdout.write(f"retnet {__version__}\n")
        return 0
    if name not in commands:
        hint = nearest(name, commands)
        raise UsageError(f"unknown command {name!r}{hint}; there are {', '.join(commands)}")
    command = commands[name]
    return command.run(read_flags(make_parser(name, command), arguments[1:], command.settings))


def _in_one_line(error: Exception) -> str:
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(text.split())


def _discard_stdout() -> None:
    """Let nothing that is still to be written fail once more when Python ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
