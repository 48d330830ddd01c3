"""`retnet convert`."""

import shlex
from typing import TYPE_CHECKING, Literal

from jsonargparse import ArgumentParser

from retnet.commands.flags import Command, UsageError, Values, add_flag, naming_flags

if TYPE_CHECKING:
    from retnet.checkpoint.convert import Conversion

_FLAGS_OF_IMPORTS = ("fields", "score_norm", "head_norm_eps")


def _add_flags(parser: ArgumentParser) -> None:
    for name, text in (
        ("source", "directory of the checkpoint, or the file of its weights"),
        ("destination", "directory to make; it may be there if it is empty"),
    ):
        metavar = {"source": "SRC", "destination": "DST"}[name]
        parser.add_argument(name, type=str, nargs="?", default=None, metavar=metavar, help=text)
    layouts = Literal["torchscale", "syncdoth", "fla"]
    text = "whose checkpoint SRC is; told by its fields and names where this isn't given"
    add_flag(parser, "from", layouts | None, None, text)
    text = "write a checkpoint of ours, SRC, as that project's"
    add_flag(parser, "to", Literal["torchscale", "fla"] | None, None, text)
    text = "configuration as JSON, where it isn't the config.json beside the weights"
    add_flag(parser, "fields", str | None, None, text, "FILE")
    text = "read a pickle (.bin, .pt, .pth) too: its tensors and plain values, no code"
    parser.add_argument("--allow_pickle", action="store_true", help=text)
    text = (
        "of torchscale and syncdoth, which form is followed exactly: decay (as by default) the "
        "recurrent one, paper the parallel one of torchscale up to 0.3.0"
    )
    add_flag(parser, "score_norm", Literal["decay", "paper"] | None, None, text)
    text = "epsilon in the norm of each head of torchscale's version 1; by default 1e-6"
    add_flag(parser, "head_norm_eps", float | None, None, text)


def _run(values: Values) -> int:
    source, destination = values["source"], values["destination"]
    if source is None or destination is None:
        raise UsageError("name what to convert and where to: retnet convert SRC DST")
    if values["to"] is not None:
        if values["from"] is not None:
            raise UsageError("--from and --to can't go together; convert in two steps")
        given = next((name for name in _FLAGS_OF_IMPORTS if values[name] is not None), None)
        if given is not None:
            raise UsageError(f"--{given} is for checkpoints of others; it can't go with --to")

    from rich.console import Console

    from retnet.checkpoint.convert import export_checkpoint, import_checkpoint

    console = Console(highlight=False)
    flags = {name: f"--{name}" for name in ("score_norm", "head_norm_eps")}
    with naming_flags(flags), console.status(f"Converting {source} ...", spinner="line"):
        if values["to"] is not None:
            done = export_checkpoint(source, destination, layout=values["to"])
        else:
            done = import_checkpoint(
                source,
                destination,
                layout=values["from"],
                fields_file=values["fields"],
                allow_pickle=values["allow_pickle"],
                score_norm=values["score_norm"],
                head_norm_eps=values["head_norm_eps"],
            )
    lines = _exported(done, destination) if values["to"] else _imported(done, source, destination)
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)
    return 0


def _imported(done: "Conversion", source: str, destination: str) -> list[str]:
    version = f" (version {done.version})" if done.version else ""
    return [
        f"{source} is {done.layout}'s{version}: {_sizes(done)}",
        f"Exact: {done.exactness}.",
        _next_step(done, destination),
    ]


def _next_step(done: "Conversion", destination: str) -> str:
    """How to write with what was imported, or why that can't be done yet."""
    from retnet.data.pretrained import load_any_tokenizer

    place = shlex.quote(destination)
    if "tokenizer.json" not in done.files:
        return f"There is no tokenizer.json beside it; to write with it, put one in {place}."
    try:
        load_any_tokenizer(destination, vocab_size=done.config.vocab_size)
    except ValueError as error:
        return f"retnet generate can't write with its tokenizer: {error}."
    return f'Write with it: retnet generate "..." --model {place}'


def _exported(done: "Conversion", destination: str) -> list[str]:
    return [
        f"{shlex.quote(destination)} is for {done.layout}: {_sizes(done)}",
        f"Exact: {done.exactness}.",
    ]


def _sizes(done: "Conversion") -> str:
    config = done.config
    return (
        f"{config.num_layers} layers, width {config.d_model}, {config.num_heads} heads with keys "
        f"of {config.key_size} and values of {config.value_size}, vocabulary of "
        f"{config.vocab_size:,}; {done.num_parameters:,} parameters, {done.dtype}"
    )


COMMAND = Command(
    summary="read another project's checkpoint, or write one for it",
    usage="[--from torchscale|syncdoth|fla] SRC DST, or --to torchscale|fla SRC DST",
    details="What can't be the same function is refused.",
    add_flags=_add_flags,
    run=_run,
)
