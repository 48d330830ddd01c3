"""What a server is: a frozen dataclass that checks itself. Imports nothing heavy."""

from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Literal, get_args

DType = Literal["auto", "fp32", "bf16"]
Quantize = Literal["none", "int8"]

_AT_LEAST_ONE = ("slots", "prefill_chunk", "max_prompt_tokens", "max_new_tokens", "replicas")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """A server.

    Attributes:
        host: address to listen on; 0.0.0.0 for all, which others can reach.
        port: 0 for any that is free.
        name: what the model is called by clients; None for the name of its folder.
        dtype: of weights; "auto" is bf16 where the CPU or GPU is fast at it, else fp32.
        quantize: "int8" rounds matrices to a byte a weight, which a CPU reads faster; `retnet eval
            --text` tells what that costs.
        device: cpu, cuda, ...; "auto" is cuda where there is one.
        threads: CPU threads; None for torch's choice.
        slots: requests that are served at once; each takes one state's memory, always.
        queue: requests that may wait for a slot; more are refused (429).
        prefill_chunk: the most tokens of prompts that are read between two tokens of others.
        prefix_cache_mb: memory for the states after prompts that were read, in MB.
        session_dir: folder that keeps sessions across restarts; None keeps them in memory.
        session_mb: memory for sessions, in MB.
        api_key: what clients must send; None for none. RETNET_API_KEY in the environment does it
            without showing it to `ps`.
        max_prompt_tokens: of one prompt.
        max_new_tokens: of one answer.
        max_body_mb: of a request, in MB.
        timeout_s: for one request, from its first byte to its last.
        body_timeout_s: for a request's head to arrive, for its body, and for a client to take
            what it was sent.
        drain_s: for running requests to end after SIGTERM.
        allowed_hosts: names by which clients may call the server; None allows loopback names on a
            loopback address, all on others.
        cors_origins: origins of other web pages that may call it from browsers.
        access_log: whether every request is logged (never its text).
        replicas: copies of the model, each in a process of its own that Ray keeps alive; slots,
            queue, prefix_cache_mb and session_mb are those of each.
        ray_address: of a Ray cluster for the replicas, or "auto" for the one this machine is part
            of; None for RAY_ADDRESS, else for one that is begun here and ends with the server.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    name: str | None = None
    dtype: DType = "auto"
    quantize: Quantize = "none"
    device: str = "auto"
    threads: int | None = None
    slots: int = 16
    queue: int = 256
    prefill_chunk: int = 256
    prefix_cache_mb: float = 512.0
    session_dir: str | None = None
    session_mb: float = 1024.0
    api_key: str | None = field(default=None, repr=False)
    max_prompt_tokens: int = 1_000_000
    max_new_tokens: int = 65_536
    max_body_mb: float = 8.0
    timeout_s: float = 600.0
    body_timeout_s: float = 30.0
    drain_s: float = 60.0
    allowed_hosts: tuple[str, ...] | None = None
    cors_origins: tuple[str, ...] = ()
    access_log: bool = False
    replicas: int = 1
    ray_address: str | None = None

    def __post_init__(self) -> None:
        for name in _AT_LEAST_ONE:
            _require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        _require(self.queue >= 0, "queue", "at least 0", self.queue)
        _require(0 <= self.port < 2**16, "port", "in [0, 65536)", self.port)
        _require(self.threads is None or self.threads >= 1, "threads", "at least 1", self.threads)
        for name in ("prefix_cache_mb", "session_mb", "drain_s"):
            value = getattr(self, name)
            _require(isfinite(value) and value >= 0, name, "a number >= 0", value)
        for name in ("max_body_mb", "timeout_s", "body_timeout_s"):
            value = getattr(self, name)
            _require(isfinite(value) and value > 0, name, "a number > 0", value)
        for name, kind in (("dtype", DType), ("quantize", Quantize)):
            value = getattr(self, name)
            _require(value in get_args(kind), name, f"one of {get_args(kind)}", value)
        if self.api_key is not None and not self.api_key.strip():
            raise ValueError("api_key must not be empty; leave it out for none")
        if self.uses_ray and self.session_dir is None:
            raise ValueError(
                "session_dir must name a folder that all replicas can read and write, got None; a "
                "session goes on from there when its replica is gone"
            )

    @property
    def uses_ray(self) -> bool:
        """Whether the model runs in processes of Ray's rather than in the server's own."""
        return self.replicas > 1 or self.ray_address is not None

    @property
    def is_loopback(self) -> bool:
        """Whether only programs on this machine can reach it."""
        return self.host in _LOOPBACK

    @property
    def hosts(self) -> tuple[str, ...] | None:
        """The names that a Host header may have; None for any.

        A page on the web can point a name of its own at 127.0.0.1; the name gives it away.
        """
        if self.allowed_hosts is not None or not self.is_loopback:
            return self.allowed_hosts
        return _LOOPBACK

    def model_id(self, directory: Path) -> str:
        """What clients call the model of a directory."""
        return self.name or directory.resolve().name


def _require(holds: bool, name: str, expected: str, value: object) -> None:
    if not holds:
        raise ValueError(f"{name} must be {expected}, got {value!r}")
