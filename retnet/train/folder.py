"""The folder of a run, which is a checkpoint directory, and holds metrics, plot and checkpoints."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retnet.checkpoint import CONFIG_FILE, WEIGHTS_FILE, save_checkpoint
from retnet.checkpoint.files import replace_files
from retnet.data.tokenizer import TOKENIZER_FILE
from retnet.data.tokens import Tokenizer
from retnet.model import RetNet
from retnet.train.errors import TrainingError

RUN_FILE = "run.json"

# Kinds of records that come with a validation.
_OF_A_VALIDATION = ("validation", "norms", "sample")


class RunFolder:
    """Where one run writes.

    Attributes:
        path: the folder itself; the model is saved there as of the newest checkpoint.
        best: the model as of the best validation.
        checkpoints: what the run goes on from.
        run: what the run is.
        metrics: one JSON object a line.
        plot: its picture.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.best = self.path / "best"
        self.checkpoints = self.path / "checkpoints"
        self.run = self.path / RUN_FILE
        self.metrics = self.path / "metrics.jsonl"
        self.plot = self.path / "loss.png"

    def holds_a_run(self) -> bool:
        """Whether it can be gone on with."""
        return self.run.exists()

    def require_free(self) -> None:
        """TrainingError where there is a run already, or something that a run would write over."""
        checkpoint = [self.path / name for name in (WEIGHTS_FILE, CONFIG_FILE, TOKENIZER_FILE)]
        for file in (self.run, self.metrics, self.plot, self.checkpoints, *checkpoint):
            if file.exists():
                advice = "go on with it by --resume, " if self.holds_a_run() else ""
                raise TrainingError(
                    f"out folder {str(self.path)!r} already holds a run ({file.name}); "
                    f"{advice}choose another --train.out, or delete the folder"
                )

    def create(self, run: Mapping[str, Any]) -> None:
        """Make the folder, with empty metrics in it, and write down what the run is."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.checkpoints.mkdir(exist_ok=True)
            self.metrics.touch()
            text = json.dumps(run, indent=2) + "\n"
            replace_files({self.run: lambda path: path.write_text(text, encoding="utf-8")})
        except OSError as error:
            raise TrainingError(
                f"cannot write to out folder {str(self.path)!r}: {error.strerror}; "
                "choose another --train.out"
            ) from error

    def read_run(self) -> dict[str, Any]:
        """What `create` wrote down."""
        try:
            run = json.loads(self.run.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise TrainingError(f"{self.run} can't be read: {error}") from error
        if not isinstance(run, dict) or not {"model", "train", "data"} <= run.keys():
            raise TrainingError(f"{self.run} does not describe a run of this program")
        return run

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

    def forget_after(self, step: int, *, validated_step: int) -> None:
        """Take out of the metrics what a run that goes on from a step will record again: what came
        after it, and after the last validation that it knows of.
        """
        last = dict.fromkeys(_OF_A_VALIDATION, validated_step)
        text = self.metrics.read_text(encoding="utf-8") if self.metrics.exists() else ""
        kept = []
        for line in text.splitlines():
            record = _record(line)
            if record is not None and record["step"] <= last.get(record["kind"], step):
                kept.append(f"{line}\n")
        rest = "".join(kept)
        replace_files({self.metrics: lambda path: path.write_text(rest, encoding="utf-8")})

    def remove_leftovers(self) -> None:
        """Delete what a process that was killed had not finished writing."""
        for folder in (self.path, self.best):
            for file in folder.glob(".*.part"):
                file.unlink(missing_ok=True)

    def save_model(self, model: RetNet, tokenizer: Tokenizer) -> None:
        """Save the model in place of the previous one, which is kept where that fails."""
        save_checkpoint(self.path, model, tokenizer)

    def save_best(self, model: RetNet, tokenizer: Tokenizer) -> None:
        """Save the model as the best so far."""
        save_checkpoint(self.best, model, tokenizer)


def read_records(metrics: Path) -> list[dict[str, Any]]:
    """All records in a file of metrics; none where there is none."""
    text = metrics.read_text(encoding="utf-8", errors="replace") if metrics.exists() else ""
    found = (_record(line) for line in text.splitlines())
    return [record for record in found if record is not None]


def _record(line: str) -> dict[str, Any] | None:
    """A line of metrics; None for half a line, which a kill may leave."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and {"kind", "step"} <= record.keys() else None
