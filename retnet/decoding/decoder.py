"""The decoder: a model's weights, made ready to read one token in each of many rows."""

import torch
from torch import Tensor

from retnet.decoding.torch_kernel import PADDED_ROWS, TorchKernel
from retnet.decoding.weights import merge_
from retnet.model import RetNet, RetNetState
from retnet.ops.reference import accumulation_dtype


class Decoder:
    """Reads one token in each of some rows of a state, in place.

    A row's results do not depend, by one bit, on which other rows are read with it, nor on how many
    or in which order. On a CPU this rests on how torch's products sum, which was tried on an
    AMD EPYC with AVX512-BF16 and torch 2.13; see `torch_kernel`.

    Args:
        model: in evaluation mode, fp32, bf16 or fp64. Its weights are merged and its parameters
            become views of the merged ones, so that it still reads prompts; it must not be trained,
            moved or cast from then on.

    Raises:
        ValueError: for a model that is training, or of another or of several dtypes.
    """

    def __init__(self, model: RetNet) -> None:
        _check_model(model)
        self.model = model
        self._kernel = TorchKernel(model, merge_(model))

    @property
    def vocab_size(self) -> int:
        """How many tokens there are."""
        return self.model.config.vocab_size

    @property
    def dtype(self) -> torch.dtype:
        """Of the activations."""
        return self.model.backbone.embed_tokens.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.backbone.embed_tokens.weight.device

    def new_state(self, num_rows: int) -> RetNetState:
        """The state of rows that have read nothing."""
        if num_rows < 1:
            raise ValueError(f"num_rows must be at least 1, got {num_rows}")
        config, dtype = self.model.config, accumulation_dtype(self.dtype)
        shape = (num_rows, *config.state_shape)
        layers = [
            torch.zeros(shape, dtype=dtype, device=self.device) for _ in range(config.num_layers)
        ]
        position = torch.zeros(num_rows, dtype=torch.int64, device=self.device)
        return RetNetState(tuple(layers), position)

    @torch.no_grad()
    def step_(self, tokens: Tensor, state: RetNetState, rows: Tensor) -> Tensor:
        """Read a token in each of some rows of a state, which is changed in place.

        Args:
            tokens: [B] int64.
            state: of any number of rows, each at a position of its own.
            rows: [B] int64, which of them read, each at most once. The others stay as they are.

        Returns:
            The scores of each row's next token [B, vocab_size], fp32 (fp64 for an fp64 model).

        Raises:
            ValueError: for tokens or rows that are not there, and another model's state.
        """
        self._check(tokens, state, rows)
        return self._kernel.step_(tokens, state, rows)

    def _check(self, tokens: Tensor, state: RetNetState, rows: Tensor) -> None:
        for name, x in (("tokens", tokens), ("rows", rows)):
            if x.dim() != 1 or x.dtype != torch.int64 or len(x) != len(tokens) or not len(x):
                raise ValueError(
                    f"{name} must be int64 [B], one for each of B >= 1 rows, got {x.dtype} "
                    f"{list(x.shape)} for {len(tokens)} tokens"
                )
        num_rows = len(state.position)
        shape = (num_rows, *self.model.config.state_shape)
        if len(state.layers) != self.model.config.num_layers or any(
            layer.shape != shape or not layer.is_contiguous() for layer in state.layers
        ):
            raise ValueError(
                f"state must have {self.model.config.num_layers} contiguous layers "
                f"{list(shape)}, got {len(state.layers)} like {list(state.layers[0].shape)}; "
                "it belongs to another model"
            )
        if state.layers[0].dtype != accumulation_dtype(self.dtype):
            raise ValueError(
                f"state must be {accumulation_dtype(self.dtype)}, got {state.layers[0].dtype}"
            )
        if rows.device.type == "cpu":  # Elsewhere looking at numbers would wait for the device.
            chosen = rows.tolist()
            if len(set(chosen)) < len(chosen) or min(chosen) < 0 or max(chosen) >= num_rows:
                raise ValueError(f"rows must be different and in [0, {num_rows}), got {chosen}")


def _check_model(model: RetNet) -> None:
    if model.training:
        raise ValueError("model must not be training; call model.eval() first")
    dtypes = {parameter.dtype for parameter in model.parameters()}
    if len(dtypes) > 1 or not dtypes <= PADDED_ROWS.keys():
        raise ValueError(
            f"model must be all fp32, bf16 or fp64, got {sorted(map(str, dtypes))}; cast it"
        )
