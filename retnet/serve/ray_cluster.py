"""Where replicas run: Ray, begun on this machine or joined, and Ray Serve on it.

Nothing else here imports Ray.
"""

import logging
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from retnet.serve.config import ServeConfig
from retnet.serve.replica import Replica
from retnet.serve.replicas import Replicas

# Requests are counted by replicas themselves.
_NO_LIMIT = 1_000_000

# Of what Ray begins on this machine: nothing is told to its makers; it listens on addresses that
# others don't reach (whatever that name says) but for a port of each replica's; and who calls it
# shows a token that Ray keeps in ~/.ray, without which anybody could have it run their code.
_LOCAL = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
}


@contextmanager
def placed(directory: Path, config: ServeConfig) -> Iterator[tuple[Replicas, str]]:
    """Replicas of a checkpoint's model for as long as the context lasts, and what each is given.

    Raises:
        ConnectionError: where Ray can't be begun or joined.
        ValueError: where a cluster has no room for them.
    """
    address = config.ray_address or os.environ.get("RAY_ADDRESS") or "local"
    names = [f"retnet-{socket.gethostname()}-{os.getpid()}-{i}" for i in range(config.replicas)]
    try:
        _connect(address, config)
        threads, gpus = _share(config)
        handles = _deploy(directory, _of_each(config, threads, gpus), names, gpus)
        share = f"{threads} CPU threads" + f" and {gpus} GPU" * gpus
        yield Replicas(handles, config), share
    finally:
        _leave(address, names)


def _connect(address: str, config: ServeConfig) -> None:
    settings: dict[str, Any] = {"logging_level": logging.WARNING}
    if address == "local":
        os.environ.update({name: os.environ.get(name, value) for name, value in _LOCAL.items()})
        cpus = max(config.replicas * (config.threads or 1), torch.get_num_threads())
        settings |= {"num_cpus": cpus, "include_dashboard": False}
    for is_last in (False, False, True):
        try:
            _init(address, settings)
        except ConnectionError:
            # What Ray begins gives up after 15 s, which is little where all is read for the first
            # time from a slow disk, or others work too.
            if is_last or address != "local":
                raise
        else:
            return


def _init(address: str, settings: Mapping[str, Any]) -> None:
    import ray

    try:
        ray.init(address, **settings)
    except Exception as error:
        ray.shutdown()
        reason = str(error).partition("\n")[0]
        raise ConnectionError(f"Ray can't be reached at {address!r}: {reason}") from error


def _share(config: ServeConfig) -> tuple[int, int]:
    """Threads and GPUs of each replica."""
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    cpus, gpus = ([int(node.get(kind, 0)) for node in alive] for kind in ("CPU", "GPU"))
    threads = config.threads or _most_each(cpus, config.replicas)
    if threads == 0:
        raise ValueError(
            f"replicas must be at most the {sum(cpus)} CPUs of the cluster, got {config.replicas}; "
            "start fewer, or more nodes"
        )
    wants_gpu = config.device.startswith("cuda")
    may_have_gpu = config.device == "auto" and sum(gpus) >= config.replicas
    return threads, int(wants_gpu or may_have_gpu)


def _most_each(cpus: Sequence[int], num_replicas: int) -> int:
    """The most CPUs that so many replicas can have each, on nodes with so many; 0 for no room."""
    sizes = range(max(cpus, default=0), 0, -1)
    fitting = (size for size in sizes if sum(cpu // size for cpu in cpus) >= num_replicas)
    return next(fitting, 0)


def _of_each(config: ServeConfig, threads: int, gpus: int) -> ServeConfig:
    """The configuration of a replica: what comes to it has passed the front, and it has one GPU."""
    assert config.session_dir is not None, "the configuration has checked it"
    return replace(
        config,
        host="0.0.0.0",
        api_key=None,
        allowed_hosts=None,
        cors_origins=(),
        session_dir=str(Path(config.session_dir).resolve()),
        threads=threads,
        device="cuda" if gpus else config.device,
        replicas=1,
        ray_address=None,
    )


def _deploy(directory: Path, config: ServeConfig, names: Sequence[str], gpus: int) -> Sequence[Any]:
    """Ask for replicas; handles of what will be there."""
    from ray import serve

    quiet = {"log_level": "WARNING", "enable_access_log": False}
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(proxy_location="Disabled", logging_config=quiet)
    deployment = serve.deployment(
        name="replica",
        num_replicas=1,
        max_ongoing_requests=_NO_LIMIT,
        ray_actor_options={"num_cpus": config.threads, "num_gpus": gpus},
        graceful_shutdown_timeout_s=1,
        logging_config=quiet,
    )(Replica)
    application = deployment.bind(str(directory.resolve()), config)
    targets = [serve.RunTarget(application, name=name, route_prefix=None) for name in names]
    return list(serve.run_many(targets, wait_for_applications_running=False))


def _leave(address: str, names: Sequence[str]) -> None:
    """Nothing of ours is left, here or on a cluster."""
    import ray
    from ray import serve

    if address != "local" and ray.is_initialized():
        for name in names:
            with suppress(Exception):  # it never came, or the cluster is gone
                serve.delete(name, _blocking=False)
    ray.shutdown()
