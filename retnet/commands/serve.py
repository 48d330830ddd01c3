"""`retnet serve`."""

import os
import sys
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from socket import socket
from typing import TYPE_CHECKING, get_type_hints

from jsonargparse import ArgumentParser

from retnet.commands.flags import (
    Command,
    UsageError,
    Values,
    add_flag,
    attribute_texts,
    naming_flags,
)
from retnet.commands.models import add_model, model_folder, num_parameters
from retnet.commands.terminal import bytes_text
from retnet.serve.config import ServeConfig

if TYPE_CHECKING:
    from retnet.serve.service import About

_FIELDS = tuple(field.name for field in fields(ServeConfig))
_METAVARS = {
    "host": "HOST",
    "session_dir": "DIR",
    "api_key": "KEY",
    "ray_address": "ADDRESS",
    "allowed_hosts": "[NAME,...]",
    "cors_origins": "[URL,...]",
}
_KEY_VARIABLE = "RETNET_API_KEY"


def _add_flags(parser: ArgumentParser) -> None:
    add_model(parser)
    kinds, texts = get_type_hints(ServeConfig), attribute_texts(ServeConfig)
    for field in fields(ServeConfig):
        text = texts[field.name].removesuffix(".").replace("None", "null")
        kind, metavar = kinds[field.name], _METAVARS.get(field.name)
        add_flag(parser, field.name, kind, field.default, text, metavar)


def _run(values: Values) -> int:
    with naming_flags({name: f"--{name}" for name in _FIELDS}):
        given = {name: values[name] for name in _FIELDS}
        given["api_key"] = given["api_key"] or os.environ.get(_KEY_VARIABLE) or None
        for name in ("allowed_hosts", "cors_origins"):
            given[name] = None if given[name] is None else tuple(given[name])
        config = ServeConfig(**given)
        folder = model_folder(values["model"])
        _require_packages("serve", "fastapi", "uvicorn", "prometheus_client")
        if config.uses_ray:
            _require_packages("ray", "ray")
        _serve(folder, config)
    return 0


def _require_packages(extra: str, *needed: str) -> None:
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise UsageError(f"serve needs {', '.join(missing)}: pip install 'retnet[{extra}]'")


def _serve(folder: Path, config: ServeConfig) -> None:
    from retnet.checkpoint import read_config
    from retnet.serve.server import listening

    read_config(folder)  # what is no model is told before anything is begun
    if not config.is_loopback and config.api_key is None:
        _say(f"anyone who reaches {config.host} can use this server: it has no --api_key")
    with listening(config.host, config.port) as listener:
        serve = _serve_replicas if config.uses_ray else _serve_here
        serve(folder, config, listener)


def _serve_here(folder: Path, config: ServeConfig, listener: socket) -> None:
    from retnet.serve.app import make_app
    from retnet.serve.server import serve
    from retnet.serve.service import Service

    _say(f"loading {folder}")
    service = Service(folder, config)
    app = make_app(service, loads=False)
    serve(app, service, listener, lambda url: _tell(service.loaded.about(), url, config))


def _serve_replicas(folder: Path, config: ServeConfig, listener: socket) -> None:
    from retnet.serve.front import make_front
    from retnet.serve.ray_cluster import placed
    from retnet.serve.server import serve

    where = config.ray_address or os.environ.get("RAY_ADDRESS")
    _say(f"joining Ray at {where}" if where else "starting Ray on this machine")
    with placed(folder, config) as (replicas, share):
        _say(f"loading {folder} {config.replicas} times, each with {share}")
        app = make_front(replicas)
        serve(app, replicas, listener, lambda url: _tell(replicas.about, url, config))


def _tell(about: "About", url: str, config: ServeConfig) -> None:
    """What the server is and what it takes, now that it can be used."""
    stats, copies = about.stats, config.replicas
    rounded = "" if config.quantize == "none" else f", {config.quantize} matrices"
    _say(f"{about.id}: {num_parameters(about.model):,} parameters, {about.dtype}{rounded}")
    why = f": {about.why_not_native}" if about.why_not_native else ""
    _say(f"tokens are written by the {about.kernel_name} kernel{why}")
    total_bytes = copies * stats.num_slots * stats.slot_bytes
    _say(
        f"{f'{copies} replicas x ' * (copies > 1)}{stats.num_slots} slots x "
        f"{bytes_text(stats.slot_bytes)} = {bytes_text(total_bytes)} of states, whatever the "
        "lengths; known beginnings of prompts take up to "
        f"{bytes_text(config.prefix_cache_mb * 1e6)}{' in each' * (copies > 1)}"
    )
    where = f"in {config.session_dir}" if config.session_dir else "in memory (--session_dir keeps)"
    _say(f"sessions {where}; {url}")


def _say(text: str) -> None:
    sys.stderr.write(f"retnet: {text}\n")
    sys.stderr.flush()


COMMAND = Command(
    summary="serve a model to many users at once, over OpenAI's HTTP API",
    usage="[--model DIR] [flags]",
    details="Open its address in a browser to write with it; docs/serving.md has examples for "
    "curl, OpenAI's client and lm-evaluation-harness. SIGTERM and Ctrl-C let running requests end.",
    add_flags=_add_flags,
    run=_run,
)
