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
from retnet.windows import last_tokens, score_windows, sliding_windows


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
    sets: what it is scored on, as `TextSet`s.

    scoring: how it is scored, on about `num_bytes` of each set, in passages of `passage` bytes.
    protocol "windows": every byte once, in windows of `window` bytes which begin with nothing, of
    which the last `scored` count (the first window of a passage counts whole); and "carried": for a
    model whose state is of constant size, the same bytes with the state carried through the
    passage. Protocol "last": the last `scored` bytes of each passage, read with the `window` bytes
    that end with them; and with as many as each of `contexts` says, where it has any.

    Raises:
        StoppedError: a signal came.
    """
    # Before hours of training: what will be scored is there.
    documents = {each["name"]: _documents(each["name"], place, **scoring) for each in sets}
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
    with evaluating(result.model):
        scores = {
            name: _score(result.model, each, find_device(place.device), **scoring)
            for name, each in documents.items()
        }
    return {
        "parameters": sum(weight.numel() for weight in result.model.parameters()),
        "tokens": result.num_tokens,
        "train_s": round(trained_s, 1),
        "curve": _curve(folder),
        "bits_per_byte": scores,
    }


def _documents(
    name: str,
    place: Place,
    *,
    protocol: str,
    num_bytes: int,
    passage: int,
    window: int,
    scored: int,
    contexts: Sequence[int] = (),
) -> list[TokenDocument]:
    # A few bytes more where they are counted from the end: a character that is cut is left out.
    slack = 8 if protocol == "last" else 0
    return scored_passages(name, place.data, num_bytes=num_bytes, length=passage + slack)


def _score(
    model: RetNet,
    documents: Sequence[TokenDocument],
    device: torch.device,
    *,
    protocol: str,
    num_bytes: int,
    passage: int,
    window: int,
    scored: int,
    contexts: Sequence[int] = (),
) -> Values:
    costs, bos_id = token_costs(model), ByteTokenizer.bos_id
    if protocol == "last":
        scores = {}
        for context in {window, *contexts}:
            windows = last_tokens(documents, chunk=passage, context=context, scored=scored)
            scores[context] = score_windows(costs, windows, device=device)
        of_window = scores[window]
        found: Values = {"windows": of_window.bits_per_token, "bytes": of_window.num_tokens}
        if contexts:
            found["by_context"] = {str(each): scores[each].bits_per_token for each in contexts}
        return found
    windows = sliding_windows(documents, bos_id=bos_id, window=window, stride=scored)
    score = score_windows(costs, windows, device=device)
    found = {"windows": score.bits_per_token, "bytes": score.num_tokens}
    if not model.config.state_grows:
        carried = score_tokens(costs, documents, bos_id=bos_id, device=device)
        found["carried"] = carried.bits_per_byte
    return found


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
