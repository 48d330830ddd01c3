"""Models and states on disk: safetensors and JSON. Other projects' models, in and out."""

from retnet.checkpoint.files import CONFIG_FILE, INDEX_FILE, WEIGHTS_FILE, CheckpointError
from retnet.checkpoint.fla import from_fla, to_fla
from retnet.checkpoint.native import (
    MODEL_TYPE,
    SavesItself,
    load_checkpoint,
    read_config,
    refuse_other_model,
    save_checkpoint,
)
from retnet.checkpoint.state import (
    STATE_FORMAT,
    Conversation,
    StateFormat,
    fingerprint,
    load_state,
    save_state,
)
from retnet.checkpoint.syncdoth import from_syncdoth
from retnet.checkpoint.torchscale import from_torchscale, to_torchscale

__all__ = [
    "CONFIG_FILE",
    "INDEX_FILE",
    "MODEL_TYPE",
    "STATE_FORMAT",
    "WEIGHTS_FILE",
    "CheckpointError",
    "Conversation",
    "SavesItself",
    "StateFormat",
    "fingerprint",
    "from_fla",
    "from_syncdoth",
    "from_torchscale",
    "load_checkpoint",
    "load_state",
    "read_config",
    "refuse_other_model",
    "save_checkpoint",
    "save_state",
    "to_fla",
    "to_torchscale",
]
