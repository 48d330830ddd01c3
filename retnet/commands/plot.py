"""`retnet plot`."""

from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser

from retnet.commands.flags import Command, UsageError, Values, add_flag


def _add_flags(parser: ArgumentParser) -> None:
    text = "folders of retnet train, or files of metrics"
    parser.add_argument("runs", type=str, nargs="*", default=[], metavar="RUN", help=text)
    text = (
        "picture to write, as PNG or what its name ends with (default: loss.png, and norms.png "
        "with --norms)"
    )
    add_flag(parser, "out", str | None, None, text, "FILE")
    add_flag(parser, "against", Literal["tokens", "steps", "hours"], "tokens", "what is across")
    text = "bits per byte, which compare whatever the tokenizers, or nats per token"
    add_flag(parser, "unit", Literal["bits", "nats"], "bits", text)
    text = "draw instead how large each head's outputs and states are, of one run with --log.norms"
    parser.add_argument("--norms", action="store_true", help=text)
    parser.add_argument("--overwrite", action="store_true", help="replace the picture if it exists")


def _run(values: Values) -> int:
    runs, norms = values["runs"], values["norms"]
    if not runs:
        raise UsageError("name what to draw: retnet plot runs/first")
    if norms and len(runs) > 1:
        raise UsageError(f"--norms draws one run, got {len(runs)}; draw them one by one")
    image = Path(values["out"] or ("norms.png" if norms else "loss.png"))
    if image.exists() and not values["overwrite"]:
        raise UsageError(f"{image} is there already; pass --overwrite, or another --out")

    from rich.console import Console

    from retnet.train.plot import plot_losses, plot_norms

    try:
        if norms:
            plot_norms(runs[0], image, against=values["against"])
        else:
            plot_losses(runs, image, against=values["against"], unit=values["unit"])
    except ImportError as error:
        raise UsageError(str(error)) from error
    Console(highlight=False).print(f"Drawn in {image}.", soft_wrap=True, markup=False)
    return 0


COMMAND = Command(
    summary="draw the losses of training runs in one picture",
    usage="[flags] RUN ...",
    details="A run's line is of the windows it trains on, its points of held-out text, its "
    "diamond of all of that, after the last step.",
    add_flags=_add_flags,
    run=_run,
)
