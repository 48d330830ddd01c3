"""The learning rate as a pure function of the step."""


def learning_rate(step: int, num_steps: int, *, peak: float, warmup_steps: int) -> float:
    """Linear warm-up to `peak`, then linear decay that would reach zero one step after the last.

    step: 0 ... num_steps - 1. A warm-up longer than half the run is shortened to that half.
    """
    warmup_steps = min(warmup_steps, num_steps // 2)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    return peak * (num_steps - step) / (num_steps - warmup_steps)
