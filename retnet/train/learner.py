"""What learns: the model, its optimizer, the text it reads and the state it carries."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import torch
from torch import Tensor

from retnet.checkpoint.weights import build_model
from retnet.data.batches import Batch, Streams, Windows
from retnet.model import RetNet, RetNetState
from retnet.parallel.apply import distribute
from retnet.parallel.gradients import clip_gradients_
from retnet.parallel.tensors import whole, with_rows
from retnet.parallel.world import World
from retnet.score import TokenCosts, autocast
from retnet.train.checkpoints import start_optimizer_, training_tensors
from retnet.train.config import TrainConfig
from retnet.train.environment import seed_dropout
from retnet.train.objective import NextTokenLoss
from retnet.train.optimizer import make_optimizer, set_learning_rate_
from retnet.train.precision import ChosenPrecision
from retnet.train.schedule import learning_rate
from retnet.train.step import Accumulation


class Learner:
    """A model in training.

    Attributes:
        model: the model itself, its parameters perhaps distributed.
        step: steps done.
        state: what `carry_state` carries: after the last window of this process's rows, or None.
    """

    def __init__(
        self,
        *,
        model: RetNet,
        config: TrainConfig,
        batches: Windows | Streams,
        precision: ChosenPrecision,
        world: World,
    ) -> None:
        self.model = model
        self.precision = precision
        self.batches = batches
        self.step = 0
        self.state: RetNetState | None = None
        self._config = config
        self._world = world
        model.backbone.gradient_checkpointing = config.activation_checkpointing
        self._loss = distribute(NextTokenLoss(model), world)
        if config.compile:
            for layer in model.backbone.layers:
                layer.compile()
        self.optimizer = make_optimizer(model, config.optimizer)
        size = config.batch_size // world.data_size
        self.rows = slice(world.data_rank * size, (world.data_rank + 1) * size)
        self._loss.train()

    def learn(self, num_steps: int) -> tuple[Tensor, Tensor]:
        """Do a step of a run of so many: (the mean loss of this process's tokens, the gradient's
        norm), scalars on the device."""
        config = self._config
        accumulation = Accumulation(
            loss=self._loss,
            bos_id=self.batches.bos_id,
            num_parts=config.accumulate,
            num_windows=config.horizon,
            forward=partial(self._forward, self.step),
            backward=self._loss.accumulating,
        )
        loss, state = accumulation.run(self._batch(), self.state)
        norm = clip_gradients_(list(self.model.parameters()), config.optimizer.clip)
        rate = learning_rate(self.step, num_steps, config.optimizer)
        set_learning_rate_(self.optimizer, rate)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.state = state if config.carry_state else None
        self.step += 1
        return loss, norm

    def costs(self) -> TokenCosts:
        """What the model, in evaluation mode, finds that tokens cost; for all processes at once."""

        def costs(
            tokens: Tensor, targets: Tensor, state: RetNetState | None
        ) -> tuple[Tensor, RetNetState]:
            return self._loss(tokens, targets, None, state)

        return costs

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Inside, the model is in evaluation mode and multiplies as in training."""
        self._loss.eval()
        try:
            with self._autocast():
                yield
        finally:
            self._loss.train()

    def whole_model(self) -> RetNet:
        """The model with all of its weights; every process must ask for it."""
        if self._world.size == 1:
            return self.model
        weights = {name: whole(weight) for name, weight in self.model.state_dict().items()}
        return build_model(self.model.config, weights)

    def tensors(self) -> dict[str, Tensor]:
        """All that a checkpoint holds, by name."""
        tensors = training_tensors(self.model, self.optimizer)
        if self.state is not None:
            tensors |= self._state_tensors(self.state)
        return tensors

    def start_from(self, step: int) -> dict[str, Tensor]:
        """Be after so many steps: the tensors of `tensors`, to be filled."""
        self.step = step
        start_optimizer_(self.optimizer, step)
        if self._config.carry_state and step > 0:
            self.state = self._empty_state()
        return self.tensors()

    def _empty_state(self) -> RetNetState:
        """The state of this process's rows and heads before their first token."""
        model, world = self.model.config, self._world
        heads, *rest = model.state_shape
        rows, device = self.rows.stop - self.rows.start, world.device
        shape = (rows, heads // world.config.tensor, *rest)
        layers = (torch.zeros(shape, device=device) for _ in range(model.num_layers))
        position = torch.zeros(rows, dtype=torch.int64, device=device)
        return RetNetState(tuple(layers), position)

    def _batch(self) -> Batch:
        return self.batches.batch(self.step, self.rows).to(self._world.device)

    def _state_tensors(self, state: RetNetState) -> dict[str, Tensor]:
        named = {f"carried.{index}": layer for index, layer in enumerate(state.layers)}
        named["carried.position"] = state.position
        return {name: with_rows(x, self._world) for name, x in named.items()}

    @contextmanager
    def _forward(self, step: int, part: int, window: int) -> Iterator[None]:
        if self.model.config.dropout:
            seed_dropout(self._config.seed, step, part, window, self._world.token_rank)
        with self._autocast():
            yield

    def _autocast(self) -> AbstractContextManager[object]:
        return autocast(self._world.device, self.precision.autocast_dtype)
