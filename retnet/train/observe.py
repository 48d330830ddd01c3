"""What is looked at after a validation besides the loss: the norms of heads, what a model writes.

The model is left as it is, and so is all randomness but that made here: a run with observations is
the run without.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from retnet.data.tokens import TokenData, TokenDocument
from retnet.model import RetNet
from retnet.sampling import SamplingParams
from retnet.text import complete
from retnet.train.config import TrainConfig
from retnet.train.interrupt import Stop
from retnet.train.norms import head_norms, held_out_windows

_TEMPERATURE = 0.8

# What the weights may take of a GPU's free memory: what is computed needs some too.
_SHARE_OF_FREE_MEMORY = 0.8


@dataclass(frozen=True, kw_only=True)
class Observer:
    """Looks at a model in evaluation mode, as often as it is asked.

    config: of the run; documents: held out, to see norms on.
    """

    config: TrainConfig
    data: TokenData
    documents: Sequence[TokenDocument]

    @property
    def is_wanted(self) -> bool:
        """Whether there is anything to look at."""
        return self.config.log.norms or self.config.log.sample is not None

    def observe(
        self, model: RetNet, device: torch.device, stop: Stop
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """The kinds and values of records; none more after a signal.

        device: where to compute, if the model fits there.
        """
        _bring_(model, device)
        log = self.config.log
        with _without_compiling(self.config.compile):
            if log.norms:
                yield "norms", self._norms(model)
            if log.sample is not None:
                text = self._sample(model, log.sample, stop)
                if text is not None:
                    yield "sample", {"prompt": log.sample, "text": text}

    def _norms(self, model: RetNet) -> dict[str, Any]:
        tokens = held_out_windows(
            self.documents, bos_id=self.data.bos_id, context=self.config.context
        )
        return head_norms(model, tokens.to(_device(model)))._asdict()

    def _sample(self, model: RetNet, prompt: str, stop: Stop) -> str | None:
        """How the model continues a prompt, from the same random numbers each time; None where a
        signal came before it was done."""
        generator = torch.Generator(_device(model)).manual_seed(self.config.seed)
        params = SamplingParams(max_tokens=self.config.log.sample_tokens, temperature=_TEMPERATURE)
        pieces = []
        for piece in complete(model, self.data.tokenizer, prompt, params, generator=generator):
            if stop.signal is not None:
                return None
            pieces.append(piece)
        return "".join(pieces)


def _device(model: RetNet) -> torch.device:
    return next(model.parameters()).device


def _bring_(model: RetNet, device: torch.device) -> None:
    """Move a model to a GPU where it fits beside what is there."""
    if device.type != "cuda" or _device(model) == device:
        return
    num_bytes = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    free_bytes, _ = torch.cuda.mem_get_info(device)
    if num_bytes < _SHARE_OF_FREE_MEMORY * free_bytes:
        model.to(device)


def _without_compiling(is_compiled: bool) -> AbstractContextManager[object]:
    """Layers that were compiled run as they were written: for a few calls, that is far quicker."""
    # Only where it is needed: torch imports its compiler for this.
    return torch.compiler.set_stance("force_eager") if is_compiled else nullcontext()
