"""How many steps a run has: as many as asked for, or as many as fit into its minutes."""

from retnet.train.config import TrainConfig

VALIDATIONS_A_RUN = 4

_LEAST_MEASURED_STEPS = 5
_MEASURED_SHARE = 0.1
# The first steps are slower than those that follow.
_SLOW_STEPS = 2
# Scoring a token takes its forward pass, training on one three times that.
_TRAINING_COST = 3
_TOO_LONG, _TOO_SHORT = 1.05, 0.9


class Pace:
    """Sets the number of steps from the speed so far.

    That is known once the warm-up is over, during which the learning rate doesn't depend on it, or
    a tenth of the time. Where the machine slows down later the run is shortened; where it speeds up
    the run is lengthened, in its first half only, before the learning rate has fallen far.

    num_steps: None until it is known.
    """

    def __init__(self, config: TrainConfig, held_out_bytes: int) -> None:
        self.num_steps = config.steps
        self._budget_s = config.budget_s
        self._least_steps = max(config.optimizer.warmup_steps, _LEAST_MEASURED_STEPS)
        excerpts = (VALIDATIONS_A_RUN - 1) * min(held_out_bytes, config.validation_bytes)
        cost = config.tokens_per_step * _TRAINING_COST
        self._last_validation_steps = held_out_bytes / cost
        self._excerpt_steps = excerpts / cost
        self._start: tuple[int, float] | None = None

    def wants_measurement(self, step: int, elapsed_s: float) -> bool:
        """Whether `update` should be called after this step, because the length isn't known yet."""
        if self._budget_s is None or self.num_steps is not None:
            return False
        return step == _SLOW_STEPS or self._is_measured(step, elapsed_s)

    def update(self, step: int, *, elapsed_s: float, trained_s: float) -> bool:
        """Set the number of steps anew where that is due; whether it was.

        step: steps done; elapsed_s: of the whole run; trained_s: of those in training steps.
        """
        if self._budget_s is None or step < _SLOW_STEPS:
            return False
        if self._start is None:
            self._start = (step, trained_s)
            return False
        if self.num_steps is None and not self._is_measured(step, elapsed_s):
            return False
        step_s = (trained_s - self._start[1]) / (step - self._start[0])
        share_left = max(0.0, 1 - elapsed_s / self._budget_s)
        validation_steps = self._last_validation_steps + share_left * self._excerpt_steps
        fitting = num_steps_within(
            self._budget_s,
            step=step,
            elapsed_s=elapsed_s,
            step_s=step_s,
            reserve_s=validation_steps * step_s,
        )
        if not self._is_off(step, fitting):
            return False
        self.num_steps = fitting
        return True

    def _is_measured(self, step: int, elapsed_s: float) -> bool:
        assert self._budget_s is not None
        if self._start is None or step <= self._start[0]:
            return False
        return step >= self._least_steps or elapsed_s >= _MEASURED_SHARE * self._budget_s

    def _is_off(self, step: int, fitting: int) -> bool:
        if self.num_steps is None:
            return True
        is_too_long = self.num_steps > _TOO_LONG * fitting
        is_too_short = self.num_steps < _TOO_SHORT * fitting and step < self.num_steps / 2
        return is_too_long or is_too_short


def num_steps_within(
    budget_s: float, *, step: int, elapsed_s: float, step_s: float, reserve_s: float
) -> int:
    """The steps of a run that may take `budget_s`, seen from its step `step`.

    elapsed_s: what it took so far; step_s: what one step takes; reserve_s: for validations, of
    which at most a third of the budget is kept.
    """
    left_s = budget_s - elapsed_s - min(reserve_s, budget_s / 3)
    return step + max(0, int(left_s / step_s))
