"""The training loop: two configurations in, a model and its folder out."""

import logging
import signal
import time
from dataclasses import dataclass, field
from math import isfinite, log
from pathlib import Path

import torch
from rich.console import Console

from retnet.config import ModelConfig
from retnet.data.batches import Batches, token_stream
from retnet.data.text import Corpus, Document, excerpt, load_corpus, num_bytes
from retnet.data.tokenizer import ByteTokenizer
from retnet.model import RetNet, next_token_loss
from retnet.score import autocast, score_documents
from retnet.train.config import TrainConfig
from retnet.train.environment import (
    find_device,
    seed_dropout,
    separate_randomness,
    threads,
)
from retnet.train.folder import RunFolder, TrainingError
from retnet.train.interrupt import Stop, stop_on_signals
from retnet.train.meter import Meter
from retnet.train.optimizer import make_optimizer, set_learning_rate_
from retnet.train.pace import VALIDATIONS_A_RUN, Pace
from retnet.train.plot import plot_metrics
from retnet.train.precision import ChosenPrecision, choose_precision
from retnet.train.report import Measurement, Reporter
from retnet.train.schedule import learning_rate

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """A run that ended, or was asked to.

    Attributes:
        model: as after the last step, in evaluation mode.
        out: the run's folder, which is a checkpoint directory too: of the last step.
        validation_bits_per_byte: on everything held out; None where a signal came first.
        num_steps: steps done.
        num_tokens: tokens trained on.
        elapsed_s: from the call to the result.
        stopped_by: the signal that ended the run early, or None.
    """

    model: RetNet
    out: Path
    validation_bits_per_byte: float | None
    num_steps: int
    num_tokens: int
    elapsed_s: float
    stopped_by: signal.Signals | None

    @property
    def exit_code(self) -> int:
        """What a command should exit with: 0, or 130 after Ctrl-C, 143 after SIGTERM."""
        return 0 if self.stopped_by is None else 128 + self.stopped_by


def train(
    model_config: ModelConfig, config: TrainConfig, *, console: Console | None = None
) -> TrainResult:
    """Train a new model and save it; with a console, show how it goes.

    Ctrl-C and SIGTERM end the run after its current step, with everything saved. Raises ValueError
    for text, folders and settings that don't do, and its subclass TrainingError where the loss is
    no longer finite or the disk is full; the checkpoint saved before is then intact.
    """
    started_s = time.monotonic()
    if model_config.vocab_size < ByteTokenizer.vocab_size:
        raise ValueError(
            f"vocab_size must be at least {ByteTokenizer.vocab_size} for the byte tokenizer, "
            f"got {model_config.vocab_size}"
        )
    folder = RunFolder(config.out)
    device = find_device(config.device)
    corpus = load_corpus(config.data)
    batches = Batches(
        stream=token_stream(corpus.train),
        context=config.context,
        batch_size=config.batch_size,
        seed=config.seed,
    )
    with (
        threads(config.threads),
        separate_randomness(device),
        Reporter(console) as reporter,
        stop_on_signals() as stop,
    ):
        weights = torch.Generator().manual_seed(config.seed)
        model = RetNet(model_config, generator=weights).to(device)
        run = _Run(
            model=model,
            config=config,
            corpus=corpus,
            batches=batches,
            folder=folder,
            reporter=reporter,
            stop=stop,
            pace=Pace(config, num_bytes(corpus.validation)),
            optimizer=make_optimizer(model, config),
            precision=choose_precision(config.precision, device),
            started_s=started_s,
        )
        folder.create()
        run.train()
        return run.finish()


@dataclass(kw_only=True)
class _Run:
    """A run under way: what it is made of, and where it is."""

    model: RetNet
    config: TrainConfig
    corpus: Corpus
    batches: Batches
    folder: RunFolder
    reporter: Reporter
    stop: Stop
    pace: Pace
    optimizer: torch.optim.Optimizer
    precision: ChosenPrecision
    started_s: float
    meter: Meter = field(default_factory=Meter)
    step: int = 0
    saved_step: int | None = None

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.started_s

    @property
    def num_steps(self) -> int | None:
        return self.pace.num_steps

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def num_tokens(self) -> int:
        return self.step * self.config.batch_size * self.config.context

    def train(self) -> None:
        """Steps, measurements and validations, until the last step or a signal."""
        self._introduce()
        self.model.train()
        self.meter.restart_clock()
        while self.step != self.num_steps and self.stop.signal is None:
            self._train_step()
            is_wanted = self.pace.wants_measurement(self.step, self.elapsed_s)
            if is_wanted or self.step % self.config.log_every == 0:
                self._measure()
            if self._is_validation_due():
                self._measure()
                self._save()
                self._validate(excerpt(self.corpus.validation, self.config.validation_bytes))

    def finish(self) -> TrainResult:
        """Save, validate on everything held out unless a signal came, and draw the plot."""
        self._measure()
        self._save()
        bits = None if self.stop.signal else self._validate(self.corpus.validation)
        self._plot()
        self._conclude()
        return TrainResult(
            model=self.model.eval(),
            out=self.folder.path,
            validation_bits_per_byte=bits,
            num_steps=self.step,
            num_tokens=self.num_tokens,
            elapsed_s=self.elapsed_s,
            stopped_by=self.stop.signal,
        )

    def _train_step(self) -> None:
        batch = self.batches.batch(self.step)
        segment_ids = None if batch.segment_ids is None else batch.segment_ids.to(self.device)
        if self.model.config.dropout:
            seed_dropout(self.config.seed, self.step)
        with autocast(self.device, self.precision.autocast_dtype):
            logits, _ = self.model(batch.tokens.to(self.device), segment_ids=segment_ids)
            loss = next_token_loss(logits, batch.targets.to(self.device))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        set_learning_rate_(self.optimizer, self._learning_rate())
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.meter.add(loss, norm)
        self.step += 1

    def _learning_rate(self) -> float:
        # Until the length is known the run is warming up, where the rate doesn't depend on it.
        num_steps = 2**62 if self.num_steps is None else self.num_steps
        return learning_rate(
            self.step,
            num_steps,
            peak=self.config.learning_rate,
            warmup_steps=self.config.warmup_steps,
        )

    def _is_validation_due(self) -> bool:
        if self.num_steps is None or self.step >= self.num_steps or self.stop.signal:
            return False
        every = self.config.validate_every or -(-self.num_steps // VALIDATIONS_A_RUN)
        return self.step % every == 0

    def _measure(self) -> None:
        """Report and record the steps since the last time; stop where one was not finite."""
        if not len(self.meter):
            return
        interval = self.meter.take()
        if interval.nonfinite_step is not None:
            raise TrainingError(
                self._nonfinite(f"the loss or its gradient at step {interval.nonfinite_step}")
            )
        tokens_per_s = self.config.batch_size * self.config.context / interval.step_s
        left_s = None if self.num_steps is None else (self.num_steps - self.step) * interval.step_s
        bits = interval.loss_nats / log(2)
        self.reporter.measured(
            Measurement(self.step, self.num_steps, interval.loss_nats, bits, tokens_per_s, left_s)
        )
        self._record(
            "train",
            {
                "loss_nats": interval.loss_nats,
                "bits_per_byte": bits,
                "lr": self.optimizer.param_groups[0]["lr"],
                "grad_norm": interval.gradient_norm,
                "tokens_per_s": round(tokens_per_s, 1),
                "num_steps": self.num_steps,
            },
        )
        if self.pace.update(self.step, elapsed_s=self.elapsed_s, trained_s=self.meter.trained_s):
            budget_s = self.config.budget_s or 0.0
            fit = f"{self.num_steps:,} steps fit into {budget_s / 60:g} minutes"
            self.reporter.line(f"step {self.step:,}: {fit}")

    def _save(self) -> None:
        if self.saved_step == self.step:
            return
        # The last update itself may have overflowed, which no loss has shown yet.
        if not all(bool(weight.isfinite().all()) for weight in self.model.parameters()):
            raise TrainingError(self._nonfinite(f"a weight after step {self.step - 1}"))
        self.folder.save(self.model)
        self.saved_step = self.step

    def _validate(self, documents: tuple[Document, ...]) -> float | None:
        """Bits per byte of some documents, recorded and shown; None where a signal came."""
        bar = self.reporter.validating(num_bytes(documents))

        def progress(scored: int) -> None:
            self.reporter.validated(bar, scored)
            if self.stop.signal:
                raise _StoppedError

        try:
            score = score_documents(
                self.model,
                [document.data for document in documents],
                autocast_dtype=self.precision.autocast_dtype,
                progress=progress,
            )
        except _StoppedError:
            return None
        finally:
            self.reporter.validation_ended(bar)
            self.meter.restart_clock()
        bits = score.bits_per_byte
        if not isfinite(bits):
            raise TrainingError(self._nonfinite(f"the validation loss at step {self.step}"))
        is_whole = documents is self.corpus.validation
        self._record(
            "validation",
            {
                "loss_nats": bits * log(2),
                "bits_per_byte": bits,
                "bytes": score.total_bytes,
                "whole": is_whole,
            },
        )
        amount = "everything" if is_whole else _megabytes(score.total_bytes)
        self.reporter.line(f"step {self.step:,}: {bits:.3f} bits per byte on {amount} held out")
        return bits

    def _record(self, kind: str, values: dict[str, object]) -> None:
        """Append to the metrics; every record tells its step, tokens and time."""
        where = {
            "step": self.step,
            "tokens": self.num_tokens,
            "elapsed_s": round(self.elapsed_s, 3),
        }
        self.folder.record({"kind": kind, **where, **values})

    def _introduce(self) -> None:
        train, held_out = self.corpus.train, self.corpus.validation
        precision = self.precision
        num_parameters = sum(weight.numel() for weight in self.model.parameters())
        self._record(
            "start",
            {
                "train": self.config.to_dict(),
                "model": self.model.config.to_dict(),
                "parameters": num_parameters,
                "precision": precision.name,
                "device": str(self.device),
                "train_bytes": num_bytes(train),
                "validation_bytes": num_bytes(held_out),
                "torch": torch.__version__,
            },
        )
        line = self.reporter.line
        sizes = f"{_megabytes(num_bytes(train))} to train on, {_megabytes(num_bytes(held_out))}"
        line(f"{self.config.data}: {sizes} held out")
        line(f"{num_parameters:,} parameters on {self.device}")
        line(f"{precision.name} matmuls: {precision.reason}")

    def _plot(self) -> None:
        try:
            plot_metrics(self.folder.metrics, self.folder.plot)
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


def _megabytes(number: int) -> str:
    return f"{number / 1e6:.1f} MB" if number >= 1e5 else f"{number / 1e3:.1f} kB"
