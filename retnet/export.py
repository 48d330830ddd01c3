"""A RetNet outside of Python: the one-token step as a graph of tensors, for torch.export and ONNX.

A step reads and writes a state of constant size, which is all that a program in another language
has to keep between two tokens.
"""

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim

from retnet.model import RetNet, RetNetState
from retnet.ops import retention_recurrent


class DecodingStep(nn.Module):
    """A token a row and a state in, scores and a state out; tensors only.

    forward(tokens [B] int64, position [B] int64, *states), where the states are L tensors
    [B, H, K, V] in fp32: zeros, and position 0, before the first token. Returns (logits
    [B, vocab_size], position, *states), to be handed in with the next token.
    """

    def __init__(self, model: RetNet) -> None:
        super().__init__()
        self.model = model
        self.train(model.training)

    def forward(self, tokens: Tensor, position: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """One token further (Eq. 6)."""
        state = RetNetState(states, position)
        logits, state = self.model(tokens[:, None], state, retain=retention_recurrent)
        return logits[:, 0], state.position, *state.layers

    def start(self, batch_size: int) -> tuple[Tensor, ...]:
        """(position, *states) of rows that have read nothing."""
        weight = self.model.backbone.embed_tokens.weight
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        config = self.model.config
        states = [
            torch.zeros(batch_size, *config.state_shape, dtype=dtype, device=weight.device)
            for _ in range(config.num_layers)
        ]
        position = torch.zeros(batch_size, dtype=torch.int64, device=weight.device)
        return position, *states


@torch.no_grad()
def export_onnx(model: RetNet, path: str | Path) -> None:
    """Write the one-token step of a model as ONNX, for any number of rows.

    Inputs are named tokens, position, state_0, ...; outputs logits, next_position, next_state_0,
    ...; shapes and dtypes as in `DecodingStep`. Large weights go to a file beside it.

    Raises:
        ValueError: for a model in half precision, and where there is no folder for the file.
        ImportError: where onnx or onnxscript is missing: pip install 'retnet[onnx]'.
    """
    path = Path(path)
    _check_can_be_written(model, path)
    step = DecodingStep(model)
    tokens = torch.zeros(2, dtype=torch.int64, device=model.backbone.embed_tokens.weight.device)
    rows = {0: Dim("batch", min=1)}
    states = [f"state_{i}" for i in range(model.config.num_layers)]
    with warnings.catch_warnings():
        # About torch's own names of axes, and of its own use of what it deprecates.
        warnings.filterwarnings("ignore", r"# The axis name: batch will not", UserWarning)
        warnings.filterwarnings("ignore", r".*isinstance.treespec, LeafSpec", FutureWarning)
        torch.onnx.export(
            step,
            (tokens, *step.start(2)),
            path,
            dynamo=True,
            input_names=["tokens", "position", *states],
            output_names=["logits", "next_position", *(f"next_{name}" for name in states)],
            dynamic_shapes={
                "tokens": rows,
                "position": rows,
                "states": (rows,) * model.config.num_layers,
            },
            verbose=False,
        )


def _check_can_be_written(model: RetNet, path: Path) -> None:
    half = {x.dtype for x in model.parameters()} & {torch.bfloat16, torch.float16}
    if half:
        raise ValueError(
            f"model must have weights in float32 or float64, got {half.pop()}, in which "
            "onnxruntime has not all products; pass model.float()"
        )
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"path must be a file in a folder that exists, got {str(path)!r}")
