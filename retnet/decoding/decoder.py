"""The decoder: a model's weights, made ready to read tokens in many rows at once."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from retnet.decoding.large_pages import LargePages
from retnet.decoding.native.build import BuildError
from retnet.decoding.native.kernel import NativeKernel, unsupported
from retnet.decoding.quantize import quantize_
from retnet.decoding.reading import Reading
from retnet.decoding.torch_kernel import LEAST_ROWS, TorchKernel
from retnet.decoding.weights import Weights, merge_
from retnet.model import RetNet, RetNetState
from retnet.ops.backends import prefers_kernels, why_not
from retnet.ops.reference import accumulation_dtype

KernelName = Literal["auto", "native", "triton", "torch"]


class Decoder:
    """Reads tokens in some rows of a state, in place: one in each, or several of a prompt.

    A row's results do not depend, by one bit, on which other rows are read with it, nor on how many
    or in which order. With the native kernel this holds on every CPU; and several tokens at once
    give the bits of one after the other, wherever they are cut. With torch's kernel it rests on how
    torch's products sum, tried with torch 2.13 on AMD's and Intel's CPUs with AVX512-BF16, see
    `torch_kernel`; and where several tokens are cut changes how they are rounded.

    Args:
        model: in evaluation mode, fp32, bf16 or fp64. Its weights are merged and its parameters
            become views of the merged ones, so that it still reads prompts; it must not be trained,
            moved or cast from then on.
        kernel: "native": C++, compiled when it is first used, for fp32 and bf16 models on the CPU;
            "triton": our kernels, for fp32 and bf16 models on a GPU; "torch": torch's own
            operations, for all; "auto": native where it can be had, triton where it was verified.
        defers: whether a kernel may leave a state as it was for some tokens, which lie beside it
            until `settle_`; "triton" does, for half the bytes.
        int8: whether matrices are rounded to int8, see `quantize_`; the model's own weights change.

    Attributes:
        kernel_name: which does the steps, "native", "triton" or "torch".
        why_not_native: what "auto" found in its way, or None.

    Raises:
        ValueError: for a model that is training, of another or of several dtypes, or that the
            kernel that was asked for cannot do.
        BuildError: where the native kernel was asked for and cannot be compiled.
    """

    def __init__(
        self,
        model: RetNet,
        *,
        kernel: KernelName = "auto",
        defers: bool = False,
        int8: bool = False,
    ) -> None:
        _check_model(model)
        self._defers = defers
        if kernel not in get_args(KernelName):
            raise ValueError(
                f"kernel must be one of {', '.join(get_args(KernelName))}, got {kernel!r}"
            )
        self.model = model
        weights = merge_(model)
        if int8:
            weights = quantize_(weights)
        self.why_not_native: str | None = None
        self._kernel = self._choose(kernel, weights)
        self.kernel_name = self._kernel.name

    def _choose(self, kernel: KernelName, weights: Weights) -> NativeKernel | TorchKernel:
        if kernel == "native":
            return NativeKernel(self.model, weights)
        if kernel == "triton" or (kernel == "auto" and prefers_kernels(self.device, self.dtype)):
            reason = why_not("triton", self.device, self.dtype)
            if reason:
                raise ValueError(f"kernel 'triton' can't run here: {reason}")
            from retnet.decoding.triton_kernel import TritonKernel

            return TritonKernel(self.model, weights, defers=self._defers)
        if kernel == "auto":
            self.why_not_native = unsupported(self.model)
            try:
                if self.why_not_native is None:
                    return NativeKernel(self.model, weights)
            except BuildError as error:
                self.why_not_native = str(error)
        return TorchKernel(self.model, weights)

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
        if self.device.type == "cpu":
            pages = LargePages()
            layers = [pages.zeros(shape, dtype) for _ in range(config.num_layers)]
        else:
            zeros = torch.zeros(shape, dtype=dtype, device=self.device)
            layers = [zeros.clone() for _ in range(config.num_layers)]
        position = torch.zeros(num_rows, dtype=torch.int64, device=self.device)
        return RetNetState(tuple(layers), position)

    @torch.no_grad()
    def settle_(self, state: RetNetState, rows: Tensor) -> None:
        """Make a state hold all that rows [B] int64 have read: before it is looked at, or written
        by others, if the decoder `defers`.
        """
        self._kernel.settle_(state, rows)

    @torch.no_grad()
    def step_(
        self,
        tokens: Tensor,
        state: RetNetState,
        rows: Tensor,
        counts: Sequence[int] | None = None,
        wanted: Sequence[int] | None = None,
    ) -> Tensor:
        """Read tokens in some rows of a state, which is changed in place.

        Args:
            tokens: [N] int64, those of a row one after the other.
            state: of any number of rows, each at a position of its own.
            rows: [B] int64, which of them read, all different. The others stay as they are.
            counts: [B] how many tokens each reads; None: one each.
            wanted: [M] after which of the tokens, by their places, scores are wanted; None: after
                the last of each row.

        Returns:
            The scores of the next token [M, vocab_size], fp32 (fp64 for an fp64 model).

        Raises:
            ValueError: for tokens or rows that are not there, and another model's state.
        """
        reading = Reading.of(tokens, rows, counts, wanted)
        self._check(reading, state)
        return self._kernel.step_(reading, state)

    def _check(self, reading: Reading, state: RetNetState) -> None:
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
        rows = reading.rows
        if rows.device.type == "cpu":  # Elsewhere looking at numbers would wait for the device.
            chosen = rows.tolist()
            if len(set(chosen)) < len(chosen) or min(chosen) < 0 or max(chosen) >= num_rows:
                raise ValueError(f"rows must be different and in [0, {num_rows}), got {chosen}")


def _check_model(model: RetNet) -> None:
    if model.training:
        raise ValueError("model must not be training; call model.eval() first")
    model.config.require_retention("a decoder")
    if not model.config.gate or model.config.head_norm == "none":
        raise ValueError("a decoder needs a model with a gate and a head norm; use retnet.step")
    dtypes = {parameter.dtype for parameter in model.parameters()}
    if len(dtypes) > 1 or not dtypes <= LEAST_ROWS.keys():
        raise ValueError(
            f"model must be all fp32, bf16 or fp64, got {sorted(map(str, dtypes))}; cast it"
        )
