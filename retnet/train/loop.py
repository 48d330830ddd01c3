"""A training run from its beginning, or from its last checkpoint, to its end."""

import signal
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from retnet.config import ModelConfig
from retnet.data.batches import Streams, Windows
from retnet.data.tokens import TokenData, load_tokens
from retnet.device import find_device, threads
from retnet.model import RetNet
from retnet.parallel.world import World, join
from retnet.train.config import TrainConfig
from retnet.train.environment import separate_randomness
from retnet.train.folder import RunFolder
from retnet.train.identity import describe_run, require_same_run
from retnet.train.interrupt import stop_on_signals
from retnet.train.learner import Learner
from retnet.train.lock import locked
from retnet.train.pace import Pace
from retnet.train.precision import choose_precision
from retnet.train.records import Records, require_tensorboard
from retnet.train.report import Reporter
from retnet.train.run import Run


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """A run that ended, or was asked to.

    Attributes:
        model: as after the last step, in evaluation mode, whole in every process.
        out: the run's folder, which is a checkpoint directory too: of the last step.
        validation_bits_per_byte: on everything held out; None where a signal came first.
        num_steps: steps done, those before a resume included.
        num_tokens: tokens trained on.
        elapsed_s: from the call to the result, and the times before a resume.
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
    model_config: ModelConfig,
    config: TrainConfig,
    *,
    resume: bool = False,
    console: Console | None = None,
) -> TrainResult:
    """Train a model and save it; with a console, show how it goes.

    Under `torchrun` every process calls this, and `config.parallel` says how they share the work;
    the first one alone writes and shows.

    Ctrl-C and SIGTERM end the run after its current step, with everything saved. Raises ValueError
    for text, folders and settings that don't do, and its subclass TrainingError where the loss is
    no longer finite or the disk is full; the checkpoint saved before is then intact.

    resume: go on from the newest checkpoint in `config.out`, where there is a run of the same
    configuration on the same data; where there is none, begin.
    """
    started_s = time.monotonic()
    if config.log.tensorboard:
        require_tensorboard()
    folder = RunFolder(config.out)
    with (
        join(config.parallel, find_device(config.device)) as world,
        threads(config.threads),
        separate_randomness(world.device),
        Records(folder, tensorboard=config.log.tensorboard) as records,
        Reporter(console if world.is_main else None) as reporter,
        stop_on_signals(with_parent=world.size > 1) as stop,
    ):
        if not resume and world.is_main:
            folder.require_free()
        world.barrier()
        goes_on = resume and folder.holds_a_run()
        data = _fitting_data(model_config, config, world)
        description = describe_run(model_config, config, data)
        if goes_on:
            require_same_run(folder, description)
        run = Run(
            config=config,
            data=data,
            learner=_learner(model_config, config, data, world),
            folder=folder,
            records=records,
            reporter=reporter,
            stop=stop,
            pace=Pace(config, data.validation_bytes),
            world=world,
            started_s=started_s,
        )
        world.barrier()
        if world.is_main and not goes_on:
            folder.create(description)
        with locked(folder.run) if world.is_main else nullcontext():
            world.barrier()
            run.start(goes_on=goes_on)
            run.train()
            bits = run.finish()
        return _result(run, bits)


def _result(run: Run, validation_bits_per_byte: float | None) -> TrainResult:
    return TrainResult(
        model=run.learner.whole_model().eval(),
        out=run.folder.path,
        validation_bits_per_byte=validation_bits_per_byte,
        num_steps=run.step,
        num_tokens=run.num_tokens,
        elapsed_s=run.elapsed_s,
        stopped_by=run.stop.signal,
    )


def _learner(
    model_config: ModelConfig, config: TrainConfig, data: TokenData, world: World
) -> Learner:
    read = Streams if config.carry_state else Windows
    batches = read(
        stream=data.train,
        context=config.horizon * config.context,
        batch_size=config.batch_size,
        seed=config.seed,
        bos_id=data.bos_id,
        eos_id=data.eos_id,
    )
    precision = choose_precision(config.precision, world.device)
    weights = torch.Generator().manual_seed(config.seed)
    model = RetNet(model_config, generator=weights).to(world.device)
    return Learner(model=model, config=config, batches=batches, precision=precision, world=world)


def _fitting_data(model_config: ModelConfig, config: TrainConfig, world: World) -> TokenData:
    """The data of a run; ValueError where they, the model and the processes don't go together."""
    for name, is_on in (("carry_state", config.carry_state), ("log.norms", config.log.norms)):
        if is_on:
            model_config.require_retention(name)
    config.parallel.check(
        model_config,
        num_processes=world.size,
        batch_size=config.batch_size // config.accumulate,
        context=config.context,
    )
    data = load_tokens(config.data)
    if model_config.vocab_size < data.vocab_size:
        raise ValueError(
            f"vocab_size must be at least {data.vocab_size} for the tokens of {data.name}, "
            f"got {model_config.vocab_size}"
        )
    return data
