"""What a model in training makes of text that it is not trained on."""

from collections.abc import Callable, Sequence

import torch

from retnet.data.tokens import TokenDocument
from retnet.score import Score, score_tokens
from retnet.train.learner import Learner
from retnet.windows import score_windows, sliding_windows

_MOST_ROWS, _PIECE_SIZES = 16, (256, 1024)


def score_held_out(
    learner: Learner,
    documents: Sequence[TokenDocument],
    *,
    context: int,
    scored_at_once: int,
    device: torch.device,
    progress: Callable[[int], None],
) -> Score:
    """The score of whole documents; for a model whose state grows, in windows as long as those that
    it is trained on, of which the second half counts.

    scored_at_once: tokens for a pass.
    """
    bos_id = learner.batches.bos_id
    with learner.evaluating():
        if not learner.model.config.state_grows:
            least, most = _PIECE_SIZES
            piece_size = min(most, max(least, context))
            return score_tokens(
                learner.costs(),
                documents,
                bos_id=bos_id,
                device=device,
                batch_size=max(1, min(_MOST_ROWS, scored_at_once // piece_size)),
                piece_size=piece_size,
                progress=progress,
            )
        stride = max(1, context // 2)
        score = score_windows(
            learner.costs(),
            sliding_windows(documents, bos_id=bos_id, window=context, stride=stride),
            device=device,
            batch_size=max(1, scored_at_once // context),
            progress=progress,
        )
    nats = (score.nats.get(number, 0.0) for number in range(len(documents)))
    return Score(tuple(nats), tuple(document.num_bytes for document in documents))
