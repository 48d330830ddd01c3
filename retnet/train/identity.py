"""What a run is, for it to go on as the same one."""

from collections.abc import Iterator, Mapping
from typing import Any

from retnet import __version__
from retnet.config import ModelConfig
from retnet.data.tokens import TokenData
from retnet.train.config import TrainConfig
from retnet.train.errors import TrainingError
from retnet.train.folder import RunFolder

# What may be another when a run goes on: how it is computed, shown and kept, not what it learns.
FREE = frozenset(
    {
        "data",
        "out",
        "accumulate",
        "activation_checkpointing",
        "compile",
        "device",
        "threads",
        "validate_every",
        "validation_bytes",
        "save_every",
        "keep",
        "parallel",
        "log",
    }
)


def describe_run(model: ModelConfig, config: TrainConfig, data: TokenData) -> dict[str, Any]:
    """All that makes a run the one it is, as plain values for JSON."""
    return {
        "retnet": __version__,
        "model": _plain(model.to_dict()),
        "train": _plain(config.to_dict()),
        "data": {"fingerprint": data.fingerprint, "tokens": len(data.train)},
    }


def require_same_run(folder: RunFolder, description: Mapping[str, Any]) -> None:
    """TrainingError where the run in a folder is another, with what differs."""
    before = folder.read_run()
    differences = [
        *_differences("model", before["model"], description["model"]),
        *_differences("train", before["train"], description["train"]),
    ]
    if differences:
        raise TrainingError(
            f"the run in {folder.path} is another one: {'; '.join(differences)}; go on with the "
            "same settings, or choose another --train.out"
        )
    if before["data"] != description["data"]:
        raise TrainingError(
            f"the run in {folder.path} was trained on other data, or with another tokenizer, than "
            f"{description['train']['data']!r} holds now; restore it, or choose another --train.out"
        )


def _differences(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for key in now:
        if name == "train" and key in FREE:
            continue
        old, new = before.get(key), now[key]
        if isinstance(new, dict) and isinstance(old, dict):
            yield from _differences(f"{name}.{key}", old, new)
        elif old != new:
            yield f"{name}.{key} was {old!r} and is {new!r}"


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as JSON gives them back: lists for tuples."""
    return {
        key: _plain(value)
        if isinstance(value, dict)
        else list(value)
        if isinstance(value, tuple)
        else value
        for key, value in values.items()
    }
