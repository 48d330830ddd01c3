"""Whole checkpoints from one project's layout into another's, with their tokenizers."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from retnet.checkpoint import fla, syncdoth, torchscale
from retnet.checkpoint.files import CheckpointError, read_fields
from retnet.checkpoint.layouts import Layout, find_layout, layout_of_fields
from retnet.checkpoint.native import (
    MODEL_TYPE,
    load_checkpoint,
    write_model,
    write_tensors_and_fields,
)
from retnet.checkpoint.reading import read_source
from retnet.checkpoint.torchscale import ImportedNorm
from retnet.config import ModelConfig
from retnet.model import RetNet

# Those that can be written, too.
WRITTEN_LAYOUTS: tuple[Layout, ...] = ("torchscale", "fla")

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What was converted.

    Attributes:
        layout: the other project's.
        version: of that layout, where there are several; else "".
        config: the model's, in our terms.
        num_parameters: its weights, those that are tied counted once.
        dtype: of its weights, as safetensors and torch name it; several with commas.
        exactness: of what it is the same function, in words.
        files: the tokenizer's, which were copied along.
    """

    layout: Layout
    version: str
    config: ModelConfig
    num_parameters: int
    dtype: str
    exactness: str
    files: tuple[str, ...]


def import_checkpoint(
    source: str | Path,
    destination: str | Path,
    *,
    layout: Layout | None = None,
    fields_file: str | Path | None = None,
    allow_pickle: bool = False,
    score_norm: ImportedNorm | None = None,
    head_norm_eps: float | None = None,
) -> Conversion:
    """Another project's checkpoint as one of ours, its weights in the dtype they have.

    Args:
        source: a directory, or the file of its weights; see `read_source`, also for `fields_file`
            and `allow_pickle`.
        destination: a directory that doesn't exist, or is empty.
        layout: whose it is, where the caller knows; it is told by its fields and names anyhow.
        score_norm: which form of torchscale's or syncdoth's is followed; None for "decay".
        head_norm_eps: for torchscale's version 1; see `from_torchscale`.

    Raises:
        CheckpointError: for what can't be converted exactly, is damaged, or isn't of that layout;
            then there is no destination.
    """
    check_is_free(destination)
    read = read_source(source, fields_file=fields_file, allow_pickle=allow_pickle)
    _refuse_ours(read.fields, source)
    found = find_layout(read.fields, read.weights, str(source))
    if layout not in (None, found):
        raise CheckpointError(f"{source} is {found}'s by its fields and names, not {layout}'s")
    if found == "fla" and score_norm is not None:
        raise CheckpointError("score_norm is for torchscale and syncdoth; fla divides by nothing")
    if found != "torchscale" and head_norm_eps is not None:
        raise CheckpointError("head_norm_eps is for torchscale; the others have one epsilon")
    followed = score_norm or "decay"
    with _naming_source(source):
        if found == "fla":
            model = fla.from_fla(read.weights, read.fields)
        elif found == "syncdoth":
            model = syncdoth.from_syncdoth(read.weights, read.fields, score_norm=followed)
        else:
            model = torchscale.from_torchscale(
                read.weights, read.fields, score_norm=followed, head_norm_eps=head_norm_eps
            )
    check_tokenizer(read.directory, model.config.vocab_size)
    files = _write(
        destination, read.directory, lambda place: write_model(place, model, read.fields)
    )
    return _conversion(found, model, files)


def export_checkpoint(source: str | Path, destination: str | Path, *, layout: Layout) -> Conversion:
    """One of our checkpoints in another project's layout: config.json and model.safetensors.

    Raises:
        CheckpointError: naming a setting that the project doesn't have, or where the source is no
            checkpoint of ours; then there is no destination.
    """
    check_is_free(destination)
    source = Path(source)
    model = load_checkpoint(source)
    exports: dict[Layout, Callable[[RetNet], tuple[dict[str, Tensor], dict[str, Any]]]] = {
        "torchscale": torchscale.to_torchscale,
        "fla": fla.to_fla,
    }
    if layout not in exports:
        raise CheckpointError(
            f"{layout} can be read, not written; choose {' or '.join(WRITTEN_LAYOUTS)}"
        )
    tensors, fields = exports[layout](model)
    ids = {name: value for name, value in read_fields(source).items() if name.endswith("_token_id")}
    if layout == "fla":
        ids |= {"architectures": ["RetNetForCausalLM"], "model_type": "retnet"}
    files = _write(
        destination,
        source,
        lambda place: write_tensors_and_fields(place, tensors, {**ids, **fields}),
    )
    is_list = not isinstance(model.config.decay, str)
    note = "; its decays are rounded to fp32" if layout == "torchscale" and is_list else ""
    return _conversion(layout, model, files, note)


def _refuse_ours(fields: Mapping[str, Any], source: str | Path) -> None:
    """CheckpointError where the fields are those that `save_checkpoint` writes."""
    if fields.get("model_type") == MODEL_TYPE and layout_of_fields(fields) is None:
        raise CheckpointError(
            f"{source} is a checkpoint of retnet already; --to {' or '.join(WRITTEN_LAYOUTS)} "
            "writes it for others"
        )


@contextmanager
def _naming_source(source: str | Path) -> Iterator[None]:
    """Errors about fields and tensors say of which checkpoint they are."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from error


def check_is_free(destination: str | Path) -> None:
    """CheckpointError unless there is nothing, or an empty directory."""
    path = Path(destination)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise CheckpointError(f"{path} is there already; name a directory that isn't")


def check_tokenizer(directory: Path, vocab_size: int) -> None:
    """CheckpointError where a directory's tokenizer.json has ids that a model has no rows for."""
    path = directory / "tokenizer.json"
    if not path.is_file():
        return
    largest = max(_token_ids(path), default=0)
    if largest >= vocab_size:
        raise CheckpointError(
            f"{path} has the token id {largest} and the embedding {vocab_size} rows; it is the "
            "tokenizer of another model"
        )


def _token_ids(path: Path) -> Iterator[int]:
    """The ids in a tokenizer.json."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        vocabulary = content["model"]["vocab"]
        # Unigram models have a list of pieces, the others have ids by token.
        yield from range(len(vocabulary)) if isinstance(vocabulary, list) else vocabulary.values()
        yield from (int(token["id"]) for token in content.get("added_tokens", ()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a readable tokenizer: {error!r}") from error


def _write(
    destination: str | Path, source: Path, write: Callable[[Path], object]
) -> tuple[str, ...]:
    """Fill a new directory and copy the tokenizer's files into it; their names."""
    path = Path(destination)
    files = tuple(name for name in TOKENIZER_FILES if (source / name).is_file())
    try:
        with _appearing_at_once(path) as place:
            write(place)
            for name in files:
                shutil.copyfile(source / name, place / name)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"could not write {path}: {error}; nothing of it is left") from error
    return files


@contextmanager
def _appearing_at_once(path: Path) -> Iterator[Path]:
    """A directory to fill, which gets its name at the end; where that isn't reached, it goes."""
    path = path.resolve()
    made = [parent for parent in path.parents if not parent.exists()]
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        aside.mkdir(parents=True)
        yield aside
        if path.exists():
            path.rmdir()
        aside.rename(path)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        for parent in made:  # the innermost first; one that others have put something in stays
            with suppress(OSError):
                parent.rmdir()
        raise


def _conversion(
    layout: Layout, model: RetNet, files: tuple[str, ...], note: str = ""
) -> Conversion:
    describe = {
        "torchscale": torchscale.exactness,
        "syncdoth": syncdoth.exactness,
        "fla": fla.exactness,
    }[layout]
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in model.parameters()})
    return Conversion(
        layout=layout,
        version={"torchscale": torchscale.version(model.config), "syncdoth": "2"}.get(layout, ""),
        config=model.config,
        num_parameters=sum(tensor.numel() for tensor in model.parameters()),
        dtype=", ".join(dtypes),
        exactness=describe(model.config) + note,
        files=files,
    )
