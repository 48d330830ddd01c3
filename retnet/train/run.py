"""A run under way: steps, and between them measurements, validations and checkpoints."""

import logging
import time
from collections.abc import Sequence
from math import isfinite, log
from typing import Any

import torch

from retnet.data.tokens import TokenData, TokenDocument
from retnet.measure import peak_memory_bytes
from retnet.model import RetNet
from retnet.parallel.tensors import local
from retnet.parallel.world import World
from retnet.score import Score
from retnet.train.checkpoints import Checkpoints, read_progress
from retnet.train.config import TrainConfig
from retnet.train.errors import TrainingError
from retnet.train.folder import RunFolder
from retnet.train.held_out import score_held_out
from retnet.train.interrupt import Stop
from retnet.train.learner import Learner
from retnet.train.meter import Meter
from retnet.train.observe import Observer
from retnet.train.pace import VALIDATIONS_A_RUN, Pace
from retnet.train.plot import plot_losses
from retnet.train.records import Records
from retnet.train.report import Measurement, Reporter

SAVE_EVERY_S = 600.0

# A training pass keeps what every layer made, and its gradients.
_SCORED_FOR_A_TRAINED = 4

_logger = logging.getLogger(__name__)


class Run:
    """A run under way: what it is made of, and where it is.

    All processes of a run do the same at the same time; the first one alone writes and shows.
    """

    def __init__(
        self,
        *,
        config: TrainConfig,
        data: TokenData,
        learner: Learner,
        folder: RunFolder,
        records: Records,
        reporter: Reporter,
        stop: Stop,
        pace: Pace,
        world: World,
        started_s: float,
    ) -> None:
        self.config, self.data, self.learner, self.folder = config, data, learner, folder
        self.records, self.reporter = records, reporter
        self.stop, self.pace, self.world = stop, pace, world
        self.checkpoints = Checkpoints(folder.checkpoints, world, config.keep)
        self.meter = Meter()
        self.saved_step: int | None = None
        self.best_bits: float | None = None
        self._started_s = started_s
        self._saved_s = time.monotonic()
        self._is_stopped = False
        self._validated_step = 0
        self._excerpt = data.excerpt(config.validation_bytes)
        self._observer = Observer(config=config, data=data, documents=self._excerpt)

    @property
    def step(self) -> int:
        """Steps done."""
        return self.learner.step

    @property
    def num_steps(self) -> int | None:
        """Steps of the whole run; None until that is known."""
        return self.pace.num_steps

    @property
    def num_tokens(self) -> int:
        """Tokens trained on."""
        return self.step * self.config.tokens_per_step

    @property
    def elapsed_s(self) -> float:
        """Seconds that the run has taken, those before a resume included."""
        return time.monotonic() - self._started_s

    @property
    def _scored_at_once(self) -> int:
        """Tokens for a pass without gradients that takes no more memory than one in training."""
        rows = self.config.batch_size // (self.world.data_size * self.config.accumulate)
        return _SCORED_FOR_A_TRAINED * rows * self.config.context

    def start(self, *, goes_on: bool) -> None:
        """Be where the newest checkpoint is, or at the beginning."""
        newest = self.checkpoints.newest() if goes_on else None
        if newest is None:
            self.learner.start_from(0)
            if self.world.is_main and goes_on:
                self.folder.forget_after(-1, validated_step=-1)
            self._begin_records()
            self._introduce()
            return
        progress = read_progress(newest)
        self.checkpoints.load_(newest, self.learner.start_from(progress["step"]))
        self.pace.num_steps = progress["num_steps"]
        self.best_bits = progress["best_bits"]
        self._validated_step = progress["validated_step"]
        self.saved_step = self.step
        self._started_s -= progress["elapsed_s"]
        self.meter = Meter(first_step=self.step, pending=progress["pending"])
        if self.world.is_main:
            self.checkpoints.remove_leftovers()
            self.folder.remove_leftovers()
            self.folder.forget_after(self.step, validated_step=self._validated_step)
        self._begin_records()
        self.reporter.line(f"going on after step {self.step:,}, from {newest}")

    def train(self) -> None:
        """Steps, measurements and validations, until the last step or a signal."""
        self.meter.restart_clock()
        while True:
            self.reporter.stepped(self.step, self.num_steps)
            if self._is_validation_due():
                self._measure()
                self._validate(self._excerpt)
                self._save()
            if self.step == self.num_steps or self._was_stopped():
                break
            # Until the length is known the run is warming up, where the rate doesn't depend on it.
            self.meter.add(*self.learner.learn(self.num_steps or 2**62))
            if self._is_measurement_due():
                self._measure()
            if self._is_save_due() and not self._is_validation_due():
                self._save()

    def finish(self) -> float | None:
        """Save, validate on everything held out unless a signal came, and draw the plot.

        The bits per byte of that validation.
        """
        bits = None
        if self.step == self.num_steps:
            self._measure()
        self._save()
        if not self._was_stopped():
            if self._excerpt is not self.data.validation:
                self._validate(self._excerpt)  # For the best model: the others read no more.
            bits = self._validate(self.data.validation)
        if self.world.is_main:
            self._plot()
        self._conclude()
        return bits

    def _was_stopped(self) -> bool:
        """Whether a signal came to any process."""
        if not self._is_stopped:
            self._is_stopped = self.world.any(self.stop.is_wanted())
        return self._is_stopped

    def _is_measurement_due(self) -> bool:
        if self.step % self.config.log.every == 0:
            return True
        if self.num_steps is not None:
            return False
        (elapsed_s,) = self.world.agree([self.elapsed_s])
        return self.pace.wants_measurement(self.step, elapsed_s)

    def _is_validation_due(self) -> bool:
        if self.num_steps is None or self.step >= self.num_steps or not self.step:
            return False
        if self.step == self._validated_step:
            return False
        every = self.config.validate_every or -(-self.num_steps // VALIDATIONS_A_RUN)
        return self.step % every == 0

    def _is_save_due(self) -> bool:
        if self.config.save_every is not None:
            return self.step % self.config.save_every == 0
        return self.world.any(time.monotonic() - self._saved_s > SAVE_EVERY_S)

    def _measure(self) -> None:
        """Report and record the steps since the last time; stop where one was not finite."""
        if not len(self.meter):
            return
        interval = self.meter.take(self.world.mean)
        if interval.nonfinite_step is not None:
            step = interval.nonfinite_step
            places = self.learner.batches.batch(step).starts.tolist()
            at = f"its rows begin at tokens {', '.join(map(str, places[:8]))}"
            more = " ..." if len(places) > 8 else ""
            raise TrainingError(
                self._nonfinite(f"the loss or its gradient at step {step} ({at}{more})")
            )
        tokens_per_s = self.config.tokens_per_step / interval.step_s
        left_s = None if self.num_steps is None else (self.num_steps - self.step) * interval.step_s
        bits = interval.loss_nats / log(2) * len(self.data.train) / self.data.train_bytes
        now = Measurement(
            step=self.step,
            num_steps=self.num_steps,
            loss_nats=interval.loss_nats,
            bits_per_byte=bits,
            learning_rate=self.learner.optimizer.param_groups[0]["lr"],
            gradient_norm=interval.gradient_norm,
            tokens_per_s=tokens_per_s,
            memory_bytes=peak_memory_bytes(self.world.device),
            left_s=left_s,
        )
        self.reporter.measured(now)
        self._record(
            "train",
            {
                "loss_nats": now.loss_nats,
                "bits_per_byte": now.bits_per_byte,
                "lr": now.learning_rate,
                "grad_norm": now.gradient_norm,
                "tokens_per_s": round(now.tokens_per_s, 1),
                "memory_bytes": now.memory_bytes,
                "num_steps": now.num_steps,
            },
        )
        self._set_pace()

    def _set_pace(self) -> None:
        elapsed_s, trained_s = self.world.agree([self.elapsed_s, self.meter.trained_s])
        if self.pace.update(self.step, elapsed_s=elapsed_s, trained_s=trained_s):
            budget_s = self.config.budget_s or 0.0
            fit = f"{self.num_steps:,} steps fit into {budget_s / 60:g} minutes"
            self.reporter.line(f"step {self.step:,}: {fit}")

    def _save(self) -> None:
        """Save a checkpoint to go on from, and the model as it is."""
        if self.saved_step == self.step:
            return
        tensors = self.learner.tensors()
        # The last update itself may have overflowed, which no loss has shown yet.
        is_finite = all(bool(local(tensor).isfinite().all()) for tensor in tensors.values())
        if self.world.any(not is_finite):
            raise TrainingError(self._nonfinite(f"a weight after step {self.step - 1}"))
        progress = {
            "step": self.step,
            "num_steps": self.num_steps,
            "elapsed_s": self.elapsed_s,
            "best_bits": self.best_bits,
            "validated_step": self._validated_step,
            "pending": self.meter.pending(self.world.mean),
        }
        self.checkpoints.save(self.step, tensors, progress)
        model = self.learner.whole_model()
        if self.world.is_main:
            self.folder.save_model(model, self.data.tokenizer)
        self.saved_step, self._saved_s = self.step, time.monotonic()

    def _validate(self, documents: Sequence[TokenDocument]) -> float | None:
        """Bits per byte of some documents, recorded and shown; None where a signal came."""
        score = self._score(documents)
        if score is None:
            return None
        bits = score.bits_per_byte
        if not isfinite(bits):
            raise TrainingError(self._nonfinite(f"the validation loss at step {self.step}"))
        is_whole = documents is self.data.validation
        self._record(
            "validation",
            {
                "loss_nats": score.total_nats / sum(len(document.ids) for document in documents),
                "bits_per_byte": bits,
                "bytes": score.total_bytes,
                "whole": is_whole,
            },
        )
        amount = "everything" if is_whole else megabytes(score.total_bytes)
        self.reporter.line(f"step {self.step:,}: {bits:.3f} bits per byte on {amount} held out")
        self._validated_step = self.step
        if documents is self._excerpt:
            self._after_validation(bits)
        return bits

    def _after_validation(self, bits: float) -> None:
        """Keep the model if it is the best so far; look at it where that was asked for."""
        is_best = self.best_bits is None or bits < self.best_bits
        if not is_best and not self._observer.is_wanted:
            return
        model = self.learner.whole_model()
        if is_best:
            self.best_bits = bits
        if self.world.is_main and is_best:
            self.folder.save_best(model, self.data.tokenizer)
        if self.world.is_main and self._observer.is_wanted:
            self._observe(model)
        self.meter.restart_clock()

    def _observe(self, model: RetNet) -> None:
        with self.learner.evaluating():
            for kind, values in self._observer.observe(model, self.world.device, self.stop):
                self._record(kind, values)
                if kind == "sample":
                    self.reporter.sampled(self.step, **values)

    def _score(self, documents: Sequence[TokenDocument]) -> Score | None:
        bar = self.reporter.validating(sum(len(document.ids) for document in documents))

        def progress(scored: int) -> None:
            self.reporter.validated(bar, scored)
            if self._was_stopped():
                raise _StoppedError

        try:
            return score_held_out(
                self.learner,
                documents,
                context=self.config.context,
                scored_at_once=self._scored_at_once,
                device=self.world.device,
                progress=progress,
            )
        except _StoppedError:
            return None
        finally:
            self.reporter.validation_ended(bar)
            self.meter.restart_clock()

    def _record(self, kind: str, values: dict[str, Any]) -> None:
        """Append to the metrics; every record tells its step, tokens and time."""
        if not self.world.is_main:
            return
        where = {
            "step": self.step,
            "tokens": self.num_tokens,
            "elapsed_s": round(self.elapsed_s, 3),
        }
        self.records.write({"kind": kind, **where, **values})

    def _begin_records(self) -> None:
        if self.world.is_main:
            self.records.begin(self.elapsed_s)

    def _introduce(self) -> None:
        data, model, precision = self.data, self.learner.model, self.learner.precision
        num_parameters = sum(weight.numel() for weight in model.parameters())
        self._record(
            "start",
            {
                "train": self.config.to_dict(),
                "model": model.config.to_dict(),
                "parameters": num_parameters,
                "precision": precision.name,
                "device": str(self.world.device),
                "processes": self.world.size,
                "train_bytes": data.train_bytes,
                "validation_bytes": data.validation_bytes,
                "torch": torch.__version__,
            },
        )
        line = self.reporter.line
        held_out = megabytes(data.validation_bytes)
        line(f"{data.name}: {megabytes(data.train_bytes)} to train on, {held_out} held out")
        line(f"{num_parameters:,} parameters on {self.world.device}")
        line(f"{precision.name} matmuls: {precision.reason}")

    def _plot(self) -> None:
        try:
            plot_losses([self.folder.path], self.folder.plot)
        except (ImportError, OSError, ValueError) as error:  # a run is worth more than its picture
            _logger.warning("no plot: %s", error)

    def _conclude(self) -> None:
        after = f"after {self.step:,} steps, {self.num_tokens:,} tokens"
        stopped = f"stopped by {self.stop.signal.name} " if self.stop.signal else ""
        self.reporter.line(f"{stopped}{after}; saved in {self.folder.path}")

    def _nonfinite(self, what: str) -> str:
        saved = "no checkpoint was saved before"
        if self.saved_step is not None:
            saved = f"the checkpoint of step {self.saved_step} in {self.folder.path} is intact"
        advice = "try a lower learning_rate or precision fp32"
        return f"{what} is not finite (seed {self.config.seed}); {saved}; {advice}"


class _StoppedError(Exception):
    """A signal came while held-out text was read."""


def megabytes(number: int) -> str:
    """A count of bytes in words: "1.2 MB"."""
    return f"{number / 1e6:.1f} MB" if number >= 1e5 else f"{number / 1e3:.1f} kB"
