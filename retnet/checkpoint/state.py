"""A state as a file, bound to the model that wrote it."""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from retnet.checkpoint.files import CheckpointError, read_safetensors, replace_files
from retnet.model import RetNet, RetNetState

STATE_FORMAT = "retnet-state-1"


def fingerprint(model: RetNet) -> str:
    """A short name for a model: a hash of its configuration and of weights sampled from every
    tensor.

    Values are compared after rounding to bf16, so that a model keeps its name when it is cast to
    bf16.
    """
    digest = hashlib.sha256(json.dumps(model.config.to_dict(), sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        places = torch.linspace(
            0, tensor.numel() - 1, min(tensor.numel(), 256), dtype=torch.float64
        ).long()
        values = tensor.flatten()[places.to(tensor.device)].to(torch.bfloat16).float().cpu()
        digest.update(name.encode() + values.numpy().tobytes())
    return digest.hexdigest()[:32]


def save_state(path: str | Path, state: RetNetState, model: RetNet) -> None:
    """Write a state, with its model's fingerprint; `load_state` gives back the same bits."""
    path = Path(path)
    tensors = {f"layers.{i}": layer.contiguous().cpu() for i, layer in enumerate(state.layers)}
    tensors["position"] = state.position.contiguous().cpu()
    metadata = {"format": STATE_FORMAT, "fingerprint": fingerprint(model)}
    try:
        replace_files({path: lambda aside: save_file(tensors, aside, metadata)})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"could not save the state to {path}: {error}") from error


def load_state(path: str | Path, model: RetNet) -> RetNetState:
    """The state that `save_state` wrote, on the model's device; another model's is refused."""
    path = Path(path)
    tensors, metadata = read_safetensors(path)
    if metadata.get("format") != STATE_FORMAT:
        raise CheckpointError(f"{path} is not a saved state; expected a file written by save_state")
    expected = fingerprint(model)
    if metadata.get("fingerprint") != expected:
        raise CheckpointError(
            f"{path} is a state of another model (fingerprint {metadata.get('fingerprint')}, "
            f"this one is {expected}); "
            "load it with the model that wrote it"
        )
    device = model.backbone.embed_tokens.weight.device
    names = [f"layers.{i}" for i in range(model.config.num_layers)]
    missing = [name for name in (*names, "position") if name not in tensors]
    if missing:
        raise CheckpointError(f"{path} is damaged: {', '.join(missing)} is missing in it")
    return RetNetState(
        tuple(tensors[name].to(device) for name in names), tensors["position"].to(device)
    )
