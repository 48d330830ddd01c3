"""The learning rate as a pure function of the step."""


def learning_rate(step: int, num_steps: int, *, peak: float, warmup_steps: int) -> float:
    """Linear warm-up to `peak`, then linear decay that would reach zero one step after the last.

    step: 0 ... num_steps - 1. A warm-up longer than half the run is shortened to that half.
    """
    warmup_steps = min(warmup_steps, num_steps // 2)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    return peak * (num_steps - step) / (num_steps - warmup_steps)


def num_steps_within(
    budget_s: float, *, step: int, elapsed_s: float, step_s: float, reserve_s: float
) -> int:
    """The steps of a run that may take `budget_s`, seen from its step `step`.

    elapsed_s: what it took so far; step_s: what one step takes; reserve_s: for validations, of
    which at most a third of the budget is kept.
    """
    left_s = budget_s - elapsed_s - min(reserve_s, budget_s / 3)
    return step + max(0, int(left_s / step_s))
