"""One step's gradients: its rows in parts, its windows in order, memory for one window of one part.

Gradients flow through the state from each window to those before it in the same step. They need no
more memory than one window's: all windows are read once without keeping anything but the states
between them, and then backwards, each again from its state, with the gradient of the state that it
hands on.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from retnet.data.batches import Batch
from retnet.model import RetNetState

# (tokens, targets, segment_ids, the state before) -> the mean loss, the state after.
Loss = Callable[[Tensor, Tensor, Tensor | None, RetNetState | None], tuple[Tensor, RetNetState]]


@dataclass(frozen=True, kw_only=True)
class Accumulation:
    """How a step's gradients are summed up.

    loss: what is trained.
    bos_id: what begins a document: a window that begins with it doesn't see the state before.
    num_parts: parts of the rows; num_windows: windows of a row.
    forward: given the part's and window's number, what a forward pass runs in: autocast, and the
        seed of dropout, which must be the same each time.
    backward: given whether it is the step's last, what a backward pass runs in.
    """

    loss: Loss
    bos_id: int
    num_parts: int
    num_windows: int
    forward: Callable[[int, int], AbstractContextManager[object]]
    backward: Callable[[bool], AbstractContextManager[object]]

    def run(self, batch: Batch, state: RetNetState | None) -> tuple[Tensor, RetNetState]:
        """Add a step's gradients to the parameters: the mean loss, and the state after its rows.

        batch: rows of num_windows windows each; state: before the first of them, or None.
        """
        size = len(batch.tokens) // self.num_parts
        losses: list[Tensor] = []
        states: list[RetNetState] = []
        for part in range(self.num_parts):
            rows = slice(part * size, (part + 1) * size)
            before = None if state is None else state.rows(range(rows.start, rows.stop))
            loss, after = self._part(part, batch.rows(rows), before)
            losses.append(loss)
            states.append(after)
        return torch.stack(losses).mean(), RetNetState.stack(states)

    def _part(
        self, part: int, batch: Batch, state: RetNetState | None
    ) -> tuple[Tensor, RetNetState]:
        windows = list(_windows(batch, self.num_windows))
        before: list[RetNetState | None] = [state]
        for number, window in enumerate(windows[:-1]):
            with torch.no_grad(), self.forward(part, number):
                _, after = self._read(window, before[-1])
            before.append(after)
        losses: list[Tensor] = []
        last: RetNetState | None = None
        grads: Sequence[Tensor] = ()
        for number in reversed(range(len(windows))):
            loss, after, grads = self._window(part, number, windows[number], before[number], grads)
            losses.append(loss)
            last = last or after
        assert last is not None
        return torch.stack(losses).mean(), last

    def _window(
        self,
        part: int,
        number: int,
        window: Batch,
        state: RetNetState | None,
        grads_after: Sequence[Tensor],
    ) -> tuple[Tensor, RetNetState, Sequence[Tensor]]:
        """The loss of a window, the state after it, and the gradients of the state before it.

        grads_after: those of the state after it; none for the last window.
        """
        if number > 0:
            assert state is not None
            layers = tuple(layer.detach().requires_grad_() for layer in state.layers)
            state = RetNetState(layers, state.position)
        is_last = part == self.num_parts - 1 and number == 0
        with self.backward(is_last):
            with self.forward(part, number):
                loss, after = self._read(window, state)
            share = loss.new_full((), 1 / (self.num_parts * self.num_windows))
            handed_on = after.layers if grads_after else ()
            torch.autograd.backward([loss, *handed_on], [share, *grads_after])
        grads = [layer.grad for layer in state.layers] if state is not None and number else []
        return loss.detach(), after.detached(), [grad for grad in grads if grad is not None]

    def _read(self, window: Batch, state: RetNetState | None) -> tuple[Tensor, RetNetState]:
        if state is not None:
            state = state.cleared(window.tokens[:, 0] == self.bos_id)
        return self.loss(window.tokens, window.targets, window.segment_ids, state)


def _windows(batch: Batch, number: int) -> Sequence[Batch]:
    """The rows cut into windows of one length."""
    if number == 1:
        return [batch]
    tokens, targets = (x.chunk(number, dim=1) for x in (batch.tokens, batch.targets))
    segments = (
        [None] * number if batch.segment_ids is None else batch.segment_ids.chunk(number, dim=1)
    )
    return [Batch(*each, batch.starts) for each in zip(tokens, targets, segments, strict=True)]
