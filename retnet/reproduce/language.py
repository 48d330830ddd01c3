"""A cell that trains a language model on bytes and tells what it makes of texts."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from retnet.config import ModelConfig
from retnet.data.shards import is_prepared
from retnet.data.tokenizer import ByteTokenizer
from retnet.data.tokens import TokenDocument
from retnet.device import find_device
from retnet.model import RetNet
from retnet.reproduce.cells import Place, StoppedError, Values
from retnet.reproduce.texts import find_source, scored_passages
from retnet.score import evaluating, score_tokens, token_costs
from retnet.train.config import TrainConfig
from retnet.train.folder import RunFolder, read_records
from retnet.train.loop import train
from retnet.windows import Window, last_tokens, score_windows, sliding_windows


def measure_language_model(
    place: Place,
    *,
    model: Mapping[str, Any],
    training: Mapping[str, Any],
    text: Mapping[str, str],
    scoring: Mapping[str, Any],
    sets: Sequence[Mapping[str, str]],
) -> Values:
    """Train a model, which goes on where it was interrupted, and score it.

    model: a `ModelConfig`'s fields. training: a `TrainConfig`'s. text: what it is trained on and
    sets: what it is scored on, as `TextSet`s. scoring: how, see `score_sets`.

    Raises:
        StoppedError: a signal came.
    """
    source = find_source(text["name"], place.data)
    folder = RunFolder(place.folder / "run")
    result = train(
        ModelConfig.from_dict(model),
        TrainConfig.from_dict(
            {
                **training,
                "data": source if is_prepared(source) else str(place.texts / text["name"]),
                "out": str(folder.path),
                "device": place.device,
                "keep": 1,
            }
        ),
        resume=True,
    )
    if result.stopped_by is not None:
        raise StoppedError
    trained_s = result.elapsed_s
    names = [each["name"] for each in sets]
    with evaluating(result.model):
        scores = score_sets(result.model, names, place, **scoring)
    return {
        "parameters": sum(weight.numel() for weight in result.model.parameters()),
        "tokens": result.num_tokens,
        "train_s": round(trained_s, 1),
        "curve": _curve(folder),
        "bits_per_byte": scores,
    }


def score_sets(
    model: RetNet,
    names: Sequence[str],
    place: Place,
    *,
    protocol: str,
    num_bytes: int,
    passage: int,
    window: int,
    scored: int,
) -> dict[str, Values]:
    """Bits per byte of some data sets, about `num_bytes` of each, in passages of equal length.

    protocol: "windows": every byte once, in windows of `window` bytes which start from nothing, of
    which the last `scored` count (the first window of a passage counts whole); and "carried": for a
    model whose state is of constant size, the same bytes with the state carried through the
    passage. "last": the last `scored` bytes of each passage, read with the `window` bytes that end
    with them.
    """
    bos_id, device = ByteTokenizer.bos_id, find_device(place.device)
    costs = token_costs(model)
    found: dict[str, Values] = {}
    for name in names:
        # A few bytes more, since a character that would be cut is left out.
        slack = 8 if protocol == "last" else 0
        documents = scored_passages(name, place.data, num_bytes=num_bytes, length=passage + slack)
        windows = _windows(documents, protocol, bos_id, passage, window, scored)
        score = score_windows(costs, windows, device=device)
        found[name] = {"windows": score.bits_per_token, "bytes": score.num_tokens}
        if protocol == "windows" and not model.config.state_grows:
            carried = score_tokens(costs, documents, bos_id=bos_id, device=device)
            found[name]["carried"] = carried.bits_per_byte
    return found


def _windows(
    documents: Sequence[TokenDocument],
    protocol: str,
    bos_id: int,
    passage: int,
    window: int,
    scored: int,
) -> Sequence[Window]:
    if protocol == "last":
        return list(last_tokens(documents, chunk=passage, context=window, scored=scored))
    return list(sliding_windows(documents, bos_id=bos_id, window=window, stride=scored))


def _curve(folder: RunFolder) -> list[list[float]]:
    """(tokens, bits per byte) of the windows that were trained on, thinned to about fifty."""
    points = [
        [record["tokens"], record["bits_per_byte"]]
        for record in read_records(folder.metrics)
        if record["kind"] == "train"
    ]
    size = max(1, math.ceil(len(points) / 50))
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [
        [group[-1][0], float(torch.tensor([bits for _, bits in group]).mean())] for group in groups
    ]
