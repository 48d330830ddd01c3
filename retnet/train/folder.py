"""The folder of a run, which is its checkpoint and holds its metrics and plot."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retnet.checkpoint import CONFIG_FILE, WEIGHTS_FILE, save_checkpoint
from retnet.data.tokenizer import TOKENIZER_FILE, ByteTokenizer
from retnet.model import RetNet


class TrainingError(ValueError):
    """A run that cannot start or go on. What was saved before is intact."""


class RunFolder:
    """Where one run writes; a folder that holds a run already is refused at once."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.metrics = self.path / "metrics.jsonl"
        self.plot = self.path / "loss.png"
        checkpoint = [self.path / name for name in (WEIGHTS_FILE, CONFIG_FILE, TOKENIZER_FILE)]
        for file in (self.metrics, self.plot, *checkpoint):
            if file.exists():
                raise TrainingError(
                    f"out folder {str(path)!r} already holds a run ({file.name}); "
                    "choose another --train.out, or delete the folder"
                )

    def create(self) -> None:
        """Make the folder, with empty metrics in it."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.metrics.touch()
        except OSError as error:
            raise TrainingError(
                f"cannot write to out folder {str(self.path)!r}: {error.strerror}; "
                "choose another --train.out"
            ) from error

    def record(self, values: Mapping[str, Any]) -> None:
        """Append one JSON line to the metrics."""
        line = json.dumps(values, allow_nan=False) + "\n"
        try:
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise TrainingError(
                f"cannot write {str(self.metrics)!r}: {error.strerror}; make room there"
            ) from error

    def save(self, model: RetNet) -> None:
        """Save the checkpoint in place of the previous one, which is kept where that fails."""
        save_checkpoint(self.path, model, ByteTokenizer())
