"""The server as a process: it answers while its model loads, and ends what runs before it goes."""

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Protocol

import uvicorn
from starlette.types import ASGIApp

from retnet.serve.config import ServeConfig
from retnet.serve.connections import bounded

_log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Serving(Protocol):
    """What an application is about, which comes and goes with the server."""

    @property
    def config(self) -> ServeConfig:
        """The server's."""

    @property
    def is_loaded(self) -> bool:
        """Whether it can be used."""

    async def load(self) -> None:
        """Make it ready."""

    async def drain(self) -> None:
        """Take nothing new, and wait for what runs."""

    async def close(self) -> None:
        """End everything."""


def serve(
    app: ASGIApp, service: Serving, listener: socket.socket, on_ready: Callable[[str], None]
) -> None:
    """Serve until SIGTERM or SIGINT, then until what runs has ended; the second one ends it now.

    app: of the service, which it doesn't load itself.
    on_ready: told of the server's URL when it can be used.

    Raises:
        ValueError: as loading the model does.
    """
    config = uvicorn.Config(
        app,
        lifespan="off",
        access_log=service.config.access_log,
        log_level="info" if service.config.access_log else "warning",
        timeout_graceful_shutdown=1,
        timeout_keep_alive=30,  # clients give idle connections up after 5 s; not both at once
        http=bounded(service.config.body_timeout_s),
        server_header=False,
    )
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:  # uvloop's
        runner.run(_serve(service, listener, _Server(config), on_ready))


async def _serve(
    service: Serving,
    listener: socket.socket,
    server: "_Server",
    on_ready: Callable[[str], None],
) -> None:
    stopping, now = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, _on_signal, stopping, now)
    running = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        await _load(service, stopping)
        if service.is_loaded:
            on_ready(url_of(listener))
        await _first_of(stopping, running)
        await _first_of(now, asyncio.create_task(service.drain()))
    finally:
        await service.close()  # those who are cut off are told
        server.should_exit = True
        await asyncio.gather(running, return_exceptions=True)


async def _load(service: Serving, stopping: asyncio.Event) -> None:
    """Load the model, unless the server is told to stop before."""
    loading = asyncio.ensure_future(service.load())
    await _first_of(stopping, loading)
    if loading.done():
        loading.result()


async def _first_of(
    event: asyncio.Event, task: "asyncio.Future[None] | asyncio.Task[None]"
) -> None:
    waiting = asyncio.create_task(event.wait())
    await asyncio.wait((waiting, task), return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()


def _on_signal(stopping: asyncio.Event, now: asyncio.Event) -> None:
    (now if stopping.is_set() else stopping).set()


class _Server(uvicorn.Server):
    """Uvicorn without signal handlers: what a signal means is decided here."""

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave them alone."""
        yield


@contextmanager
def listening(host: str, port: int) -> Generator[socket.socket, None, None]:
    """A socket that listens, so that a port that is taken is known before the model is loaded.

    Raises:
        OSError: where it can't listen.
    """
    with _listen(host, port) as listener:
        yield listener


def _listen(host: str, port: int) -> socket.socket:
    [(family, _, _, _, address), *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"can't listen on {host}:{port}: {error.strerror}") from None
    return listener


def url_of(listener: socket.socket) -> str:
    """What a browser is told."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
