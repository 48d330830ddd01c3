"""How large the outputs and the states of each head are, seen from outside of the model."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from retnet.data.tokens import TokenDocument
from retnet.model import RetNet
from retnet.ops import retention_chunkwise

_MOST_ROWS, _MOST_TOKENS = 8, 16_384


class HeadNorms(NamedTuple):
    """Root mean squares, one for each head of each layer: L lists of H.

    outputs: of what retention puts out, before the score norm and the head norm; states: of the
    state after the last token.
    """

    outputs: list[list[float]]
    states: list[list[float]]


@torch.no_grad()
def head_norms(model: RetNet, tokens: Tensor) -> HeadNorms:
    """What the heads make of tokens [B, T], each row read from an empty state."""
    size = model.config.value_size  # with score_norm "paper" there is a column more, of row sums
    outputs: list[Tensor] = []

    def watched(*arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
        out, state = retention_chunkwise(*arguments, **options)
        outputs.append(_root_mean_square(out[..., :size], over=(0, 1, 3)))
        return out, state

    _, state = model.features(tokens, retain=watched)
    states = [_root_mean_square(layer[..., :size], over=(0, 2, 3)) for layer in state.layers]
    return HeadNorms(_numbers(outputs), _numbers(states))


def held_out_windows(documents: Sequence[TokenDocument], *, bos_id: int, context: int) -> Tensor:
    """Some windows of documents, [B, T], always the same: spread evenly, T the context where that
    much is held out."""
    pieces = [ids for document in documents for ids in ([bos_id], document.ids)]
    stream = np.concatenate(pieces).astype(np.int64)
    length = min(context, len(stream))
    count = max(1, min(_MOST_ROWS, _MOST_TOKENS // length, len(stream) // length))
    starts = np.linspace(0, len(stream) - length, count).astype(np.int64)
    return torch.from_numpy(np.stack([stream[start : start + length] for start in starts]))


def _root_mean_square(x: Tensor, *, over: tuple[int, ...]) -> Tensor:
    """[H], in fp64, where squares don't overflow."""
    return x.double().square().mean(dim=over).sqrt()


def _numbers(layers: Sequence[Tensor]) -> list[list[float]]:
    return [[float(f"{value:.6g}") for value in layer.tolist()] for layer in layers]
