"""Functions run by several processes at once, as torchrun would start them."""

import multiprocessing
import os
import pickle
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import distributed as dist

# Forked from one process that has imported everything, workers start in a tenth of a second.
_CONTEXT = multiprocessing.get_context("forkserver")
_PRELOADED = ["torch", "torch.distributed.fsdp", "torch.distributed.tensor.parallel"]

_PATIENCE_S = 300.0


def run(function: Callable[..., Any], num_processes: int, *arguments: Any) -> list[Any]:
    """What function(*arguments) returns in each of several processes, by rank; AssertionError with
    the tracebacks of those that failed."""
    results = start(function, num_processes, *arguments)
    failed = [str(result) for code, result in results if code != 0]
    assert not failed, "\n".join(failed)
    return [result for _, result in results]


def start(
    function: Callable[..., Any], num_processes: int, *arguments: Any
) -> list[tuple[int | None, Any]]:
    """By rank, the exit code of each process, and what the function returned or the traceback.

    The processes see the environment that torchrun makes; this one keeps the store, as it does.
    """
    _CONTEXT.set_forkserver_preload(_PRELOADED)
    store = dist.TCPStore("localhost", 0, is_master=True)
    # As bytes: multiprocessing's own way shares the memory of tensors between processes.
    call = pickle.dumps((function, arguments))
    started = []
    for rank in range(num_processes):
        receiver, sender = _CONTEXT.Pipe(duplex=False)
        environment = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(num_processes),
            "MASTER_ADDR": "localhost",
            "MASTER_PORT": str(store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
        }
        process = _CONTEXT.Process(target=_work, args=(sender, environment, call))
        process.start()
        sender.close()
        started.append((process, receiver))
    return [_finish(process, receiver) for process, receiver in started]


def _finish(process: Any, receiver: Connection) -> tuple[int | None, Any]:
    result = None
    try:
        if receiver.poll(_PATIENCE_S):
            result = pickle.loads(receiver.recv_bytes())
    except EOFError:
        result = "killed"
    process.join(_PATIENCE_S)
    if process.exitcode is None:
        process.kill()
        return None, f"still there after {_PATIENCE_S:.0f} s"
    return process.exitcode, result


def _work(sender: Connection, environment: dict[str, str], call: bytes) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    try:
        function, arguments = pickle.loads(call)
        sender.send_bytes(pickle.dumps(function(*arguments)))
    except BaseException:
        failure = f"rank {environment['RANK']}:\n{traceback.format_exc()}"
        sender.send_bytes(pickle.dumps(failure))
        sys.exit(1)
