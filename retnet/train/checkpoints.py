"""Checkpoints that a run goes on from: weights, AdamW's means and carried states, and where it is.

One is a folder with `progress.json` and safetensors files, one a process, which
torch.distributed.checkpoint reads back for any other number of processes. It is written aside, and
renamed once all of it is on the disk.
"""

import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from retnet.parallel.world import World
from retnet.train.errors import TrainingError

PROGRESS_FILE = "progress.json"

_NAME = re.compile(r"step-(\d{8,})")


class Checkpoints:
    """The checkpoints of a run, the newest few of them."""

    def __init__(self, folder: Path, world: World, keep: int) -> None:
        self.folder = folder
        self._world = world
        self._keep = keep

    def newest(self) -> Path | None:
        """The folder of the last one, or None."""
        found = self._all()
        return found[-1] if found else None

    def save(self, step: int, tensors: Mapping[str, Tensor], progress: Mapping[str, Any]) -> None:
        """Write the checkpoint of a step, then delete the oldest ones.

        TrainingError where that fails; those from before are then as they were. Every process
        calls this; tensors that are not distributed, and progress, are the first one's.
        """
        final = self.folder / f"step-{step:08}"
        aside = self.folder / f".{final.name}.part"
        failure = self._tried(lambda: _make_empty(aside), everywhere=False)
        failure = failure or self._tried(lambda: self._write(aside, tensors))
        failure = failure or self._tried(lambda: _publish(aside, final, progress), everywhere=False)
        if failure is None:
            self._tried(self._prune, everywhere=False)
            return
        if self._world.is_main:
            shutil.rmtree(aside, ignore_errors=True)
        raise TrainingError(
            f"could not save the checkpoint of step {step} to {self.folder}: {failure}; "
            f"{self._kept()}; make room and go on with --resume"
        )

    def load_(self, folder: Path, tensors: Mapping[str, Tensor]) -> None:
        """Fill tensors, in place, with what a checkpoint holds under their names."""
        reader = HuggingFaceStorageReader(str(folder))
        try:
            with _one_process_is_fine():
                load(dict(tensors), storage_reader=reader, no_dist=self._world.size == 1)
        except (CheckpointException, OSError, ValueError, RuntimeError, KeyError) as error:
            raise TrainingError(
                f"{folder} can't be read: {_reason(error)}; delete it to go on from the one "
                "before, if there is one"
            ) from error

    def _write(self, folder: Path, tensors: Mapping[str, Tensor]) -> None:
        writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
        with _one_process_is_fine():
            save(dict(tensors), storage_writer=writer, no_dist=self._world.size == 1)

    def _tried(self, work: Any, *, everywhere: bool = True) -> str | None:
        """Why some work failed, on any process; None where it was done.

        everywhere: whether all processes do it, or only the first.
        """
        failure = None
        if everywhere or self._world.is_main:
            try:
                work()
            except (CheckpointException, OSError, RuntimeError) as error:
                failure = _reason(error)
        if not self._world.any(failure is not None):
            return None
        return failure or "another process could not write"

    def _prune(self) -> None:
        for folder in self._all()[: -self._keep]:
            # Renamed first: half a checkpoint must not look like one.
            doomed = folder.with_name(f".{folder.name}.old")
            folder.rename(doomed)
            shutil.rmtree(doomed)

    def remove_leftovers(self) -> None:
        """Delete what a process that was killed had not finished writing or deleting."""
        for pattern in (".step-*.part", ".step-*.old"):
            for folder in self.folder.glob(pattern):
                shutil.rmtree(folder, ignore_errors=True)

    def _all(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        found = [path for path in self.folder.glob("step-*") if _NAME.fullmatch(path.name)]
        return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))

    def _kept(self) -> str:
        newest = self.newest()
        return "none was saved before" if newest is None else f"{newest.name} is intact"


def read_progress(folder: Path) -> dict[str, Any]:
    """Where the run was when a checkpoint was written."""
    path = folder / PROGRESS_FILE
    try:
        progress = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(f"{path} can't be read: {error}") from error
    if not isinstance(progress, dict):
        raise TrainingError(f"{path} is not a checkpoint's: expected fields by name, in braces")
    return progress


def training_tensors(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The weights and AdamW's means by name, as they are: filling them sets the two."""
    tensors: dict[str, Tensor] = {}
    for name, weight in model.named_parameters():
        tensors[f"model.{name}"] = weight.detach()
        for mean in ("exp_avg", "exp_avg_sq"):
            tensors[f"optimizer.{mean}.{name}"] = optimizer.state[weight][mean]
    return tensors


def start_optimizer_(optimizer: torch.optim.Optimizer, step: int) -> None:
    """AdamW as after so many steps, but for its means, which are zeros."""
    for group in optimizer.param_groups:
        for weight in group["params"]:
            device = weight.device if group["fused"] else torch.device("cpu")
            optimizer.state[weight] = {
                "step": torch.tensor(float(step), device=device),
                "exp_avg": torch.zeros_like(weight),
                "exp_avg_sq": torch.zeros_like(weight),
            }


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _publish(aside: Path, final: Path, progress: Mapping[str, Any]) -> None:
    """Add the progress to a folder and give it its name, all of it on the disk."""
    with (aside / PROGRESS_FILE).open("w", encoding="utf-8") as file:
        json.dump(progress, file, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
    _synchronise(aside)
    aside.rename(final)
    _synchronise(final.parent)


def _synchronise(folder: Path) -> None:
    """Have the names in a folder on the disk."""
    try:
        number = os.open(folder, os.O_RDONLY)
    except PermissionError:  # Windows opens no folders
        return
    try:
        os.fsync(number)
    finally:
        os.close(number)


@contextmanager
def _one_process_is_fine() -> Iterator[None]:
    """Without the warning that torch.distributed is not in use."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _reason(error: BaseException) -> str:
    """What went wrong, in a line: of a distributed failure the first process's."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    return " ".join(str(error).split()) or type(error).__name__
