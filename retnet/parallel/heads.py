"""A model whose heads, and the width of its feed forward, are split among processes.

In each block a process has its own heads from the projections of queries, keys, values and gates to
its columns of the projection back, and its own part of the feed forward's width. What all heads
read and what is summed over them is whole on every process: two sums of [B, T, D] a block and
direction are exchanged. Embedding, norms and output head are whole too.
"""

from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from retnet.layers import FeedForward, MultiScaleRetention, RetNetBlock
from retnet.model import RetNet
from retnet.position import TokenContext

_HEADS = 2  # their dimension in [B, T, H, V]


def split_heads_(model: RetNet, mesh: DeviceMesh) -> None:
    """Leave each process of a mesh of one dimension its part of every block, as DTensors.

    Raises ValueError where heads or the feed forward's width don't divide, or a norm spans the
    latter.
    """
    config, size = model.config, mesh.size()
    for name in ("num_heads", "ffn_size"):
        if getattr(config, name) % size:
            raise ValueError(
                f"tensor must divide the model's {name} {getattr(config, name)}, got {size}"
            )
    if config.ffn_norm:
        raise ValueError(
            f"tensor must be 1 for a model with ffn_norm, whose norm needs the whole width of the "
            f"feed forward, got {size}"
        )
    heads = config.num_heads // size
    own = slice(mesh.get_local_rank() * heads, (mesh.get_local_rank() + 1) * heads)
    for block in model.backbone.layers:
        assert isinstance(block, RetNetBlock) and isinstance(block.mixer, MultiScaleRetention)
        _split_mixer_(block.mixer, mesh, own)
        _split_feed_forward_(block.feed_forward, mesh)


def _split_mixer_(mixer: MultiScaleRetention, mesh: DeviceMesh, own: slice) -> None:
    def for_own_heads(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        x, context, *state = inputs
        assert isinstance(context, TokenContext)
        return x, context.for_heads(own), *state

    gates = [] if mixer.g_proj is None else ["g_proj"]
    plan = _plan(columns=("q_proj", "k_proj", "v_proj", *gates), row="out_proj")
    if any(True for _ in mixer.head_norm.parameters()):
        # What torch calls sequence parallel is a norm over the last dimension of what lies in parts
        # along another: here along the heads.
        plan["head_norm"] = SequenceParallel(sequence_dim=_HEADS, use_local_output=True)
    # The x that all projections read becomes a DTensor once, whose gradient is summed once.
    plan[""] = PrepareModuleInput(
        input_layouts=(Replicate(), None, None),
        desired_input_layouts=(Replicate(), None, None),
    )
    parallelize_module(mixer, mesh, plan)
    mixer.register_forward_pre_hook(for_own_heads)
    for weight in mixer.head_norm.parameters():
        weight.register_hook(_summed)


def _split_feed_forward_(feed_forward: FeedForward, mesh: DeviceMesh) -> None:
    columns = ("up_proj",) if feed_forward.gate_proj is None else ("up_proj", "gate_proj")
    plan = _plan(columns=columns, row="down_proj")
    plan[""] = PrepareModuleInput(input_layouts=Replicate(), desired_input_layouts=Replicate())
    parallelize_module(feed_forward, mesh, plan)


def _plan(columns: tuple[str, ...], row: str) -> dict[str, ParallelStyle]:
    return {**{name: ColwiseParallel() for name in columns}, row: RowwiseParallel()}


def _summed(gradient: Tensor) -> Tensor:
    """The gradient of a weight that all heads share, which each process has of its own alone."""
    assert isinstance(gradient, DTensor)
    return gradient.redistribute(placements=[Replicate()])
