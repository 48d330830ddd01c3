"""`retnet chat`."""

import signal
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jsonargparse import ArgumentParser

from retnet.commands.flags import Command, UsageError, Values, add_flag, naming_flags
from retnet.commands.generate import SAMPLING
from retnet.commands.models import add_model, model_folder, num_parameters
from retnet.commands.terminal import visible, write_now

if TYPE_CHECKING:
    from retnet.commands.slash import Desk
    from retnet.data.pretrained import PretrainedTokenizer
    from retnet.data.tokenizer import ByteTokenizer
    from retnet.model import RetNet
    from retnet.serve.dialogue import Manner
    from retnet.train.interrupt import Stop

_BLOCK = '"""'
_BLANK_LINE = "\n\n"


def _add_flags(parser: ArgumentParser) -> None:
    add_model(parser)
    add_flag(parser, "system", str | None, None, "what stands before it all, in chat templates")
    text = "answers depend on it and the conversation; by default they differ every time"
    add_flag(parser, "seed", int | None, None, text)
    add_flag(parser, "device", str, "auto", "cpu, cuda, ...; auto: cuda where there is one")
    dtypes = Literal["auto", "fp32", "bf16"]
    add_flag(parser, "dtype", dtypes, "auto", "of weights; auto: bf16 where that is fast")
    text = "int8 rounds matrices to a byte a weight, which a CPU reads faster"
    add_flag(parser, "quantize", Literal["none", "int8"], "none", text)
    add_flag(parser, "threads", int | None, None, "CPU threads; by default torch's choice")
    group = parser.add_argument_group("sampling", "How tokens are chosen, and when to stop.")
    for name, (kind, value, text) in SAMPLING.items():
        add_flag(group, name, kind, value, text)
    text = (
        "texts that end an answer; none after the flag for no such text (default: a blank line, "
        "or what the chat template says)"
    )
    group.add_argument("--stop", type=str, nargs="*", default=None, metavar="TEXT", help=text)


def _run(values: Values) -> int:
    for name, least in (("threads", 1), ("seed", 0)):
        if values[name] is not None and not least <= values[name] < 2**63:
            raise UsageError(f"--{name} must be at least {least}, got {values[name]}")
    names = (*SAMPLING, "stop", "device")
    with naming_flags({name: f"--{name}" for name in names}):
        return _chat(values)


def _chat(values: Values) -> int:
    from retnet.checkpoint import StateFormat, load_checkpoint
    from retnet.commands.slash import Desk
    from retnet.data.pretrained import load_any_tokenizer
    from retnet.decoding import Decoder
    from retnet.device import find_device, find_dtype, threads
    from retnet.sampling import SamplingParams
    from retnet.serve.dialogue import Dialogue
    from retnet.serve.engine import Engine

    params = SamplingParams(
        stop=tuple(values["stop"] or ()), **{name: values[name] for name in SAMPLING}
    )
    directory = model_folder(values["model"])
    device = find_device(values["device"])
    model = load_checkpoint(directory, device=device, dtype=find_dtype(values["dtype"], device))
    tokenizer = load_any_tokenizer(directory, vocab_size=model.config.vocab_size)
    manner, said = _manner(directory, tokenizer, values)
    decoder = Decoder(model, defers=True, int8=values["quantize"] == "int8")
    engine = Engine(decoder, num_slots=1, prefix_cache_bytes=0)
    dialogue = Dialogue(engine, tokenizer, manner, params, values["seed"])
    _tell(f"{_about(directory, model)}; {said}. /help lists commands")
    with threads(values["threads"]):
        return _talk(Desk(dialogue, StateFormat(model), model.config))


def _manner(
    directory: Path, tokenizer: "ByteTokenizer | PretrainedTokenizer", values: Values
) -> "tuple[Manner, str]":
    """How to talk with a model, and that in words."""
    from retnet.data.chat_template import ChatTemplate
    from retnet.serve.dialogue import AsMessages, AsText

    template = ChatTemplate.load(directory, tokenizer)
    stop, system = values["stop"], values["system"]
    if template is not None:
        return AsMessages(template, tuple(stop or ()), system), "it answers, by its chat template"
    if system is not None:
        raise UsageError("--system needs a model with a chat template, which this one has not")
    stops = (_BLANK_LINE,) if stop is None else tuple(stop)
    until = "a blank line" if stop is None else " or ".join(map(repr, stops)) or "its end"
    return AsText(tokenizer, stops), f"no chat template: it goes on with your text, up to {until}"


def _about(directory: Path, model: "RetNet") -> str:
    dtype = str(model.backbone.embed_tokens.weight.dtype).removeprefix("torch.")
    return f"{directory}: {num_parameters(model.config):,} parameters, {dtype}"


def _talk(desk: "Desk") -> int:
    """Until the end of what is said; the exit code."""
    from_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    for text in _texts(_from_terminal if from_terminal else _from_pipe):
        try:
            if text.startswith("/") and not text.startswith("//"):
                _tell(desk.do(text))
            else:
                _require_unicode(text)
                _answer(desk, text.removeprefix("/"), can_stop=from_terminal)
        except BrokenPipeError:  # nobody reads on
            raise
        except (ValueError, OSError, MemoryError) as error:
            _tell(f"error: {' '.join(str(error).split()) or type(error).__name__}")
        if desk.is_over:
            break
    return 0


def _answer(desk: "Desk", text: str, *, can_stop: bool) -> None:
    """Say something and show the answer; Ctrl-C, at a terminal, ends that alone."""
    from retnet.train.interrupt import Stop, stop_on_signals

    with desk.undoable(), stop_on_signals() if can_stop else nullcontext(Stop()) as stop:
        before = desk.dialogue.conversation
        says_something = _show(desk.dialogue.say(text), stop)
        is_read = desk.dialogue.conversation is not before
    if stop.signal == signal.SIGTERM:
        signal.raise_signal(signal.SIGTERM)
    if stop.signal is not None:
        _tell("[stopped]" if is_read else "[stopped before all was read: nothing has changed]")
    elif not says_something:
        more = "; Enter goes on" if desk.dialogue.conversation.unread else ""
        _tell(f"[that was all{more}]")
    elif can_stop and desk.dialogue.is_cut:
        _tell("[as long as --max_tokens allows; Enter goes on]")


def _show(answer: Generator[str], stop: "Stop") -> bool:
    """Write an answer as it comes, to its end or until a stop is wanted; whether it was
    more than blanks.
    """
    last, says_something = "", False
    with closing(answer):
        for piece in answer:
            if piece:
                write_now(piece)
                last = piece
                says_something = says_something or not piece.isspace()
            if stop.is_wanted():
                break
    if last and not last.endswith("\n"):
        write_now("\n")
    return says_something


def _texts(read: Callable[[str], str | None]) -> Iterator[str]:
    """What is said: lines, and blocks of them. read: the next line, given a prompt."""
    while (line := read("> ")) is not None:
        if line.strip() != _BLOCK:
            yield line
            continue
        block = []
        while (line := read("... ")) is not None and line.strip() != _BLOCK:
            block.append(line)
        text = "\n".join(block)
        yield f"/{text}" if text.startswith("/") else text


def _from_pipe(_: str) -> str | None:
    line = sys.stdin.buffer.readline()
    return line.decode(errors="surrogateescape").rstrip("\r\n") if line else None


def _from_terminal(prompt: str) -> str | None:
    """A line typed there. Ctrl-C takes back what was typed; KeyboardInterrupt for a second one."""
    with suppress(ImportError):  # not on every system
        import readline  # noqa: F401, lets input() edit lines
    for is_last in (False, True):
        try:
            return input(prompt)
        except EOFError:
            write_now("\n")
            return None
        except KeyboardInterrupt:
            write_now("\n")
            if is_last:
                raise
            _tell("[Ctrl-C again, Ctrl-D or /exit ends]")
    return None


def _require_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"what was typed is not UTF-8, at character {error.start}") from error


def _tell(text: str) -> None:
    """Say something about the conversation, beside it."""
    if text:
        sys.stderr.write(f"{visible(text)}\n")
        sys.stderr.flush()


COMMAND = Command(
    summary="talk with a trained model",
    usage="[--model DIR] [flags]",
    details="Lines that begin with / are commands; /help lists them. Answers go to stdout.",
    add_flags=_add_flags,
    run=_run,
)
