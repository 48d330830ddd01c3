"""The learning rate as pure functions of the step."""

from math import cos, pi

from retnet.train.config import OptimizerConfig


def learning_rate(step: int, num_steps: int, config: OptimizerConfig) -> float:
    """The rate of a step, 0 ... num_steps - 1: a linear warm-up, then the configured fall.

    A fall would reach `final_share` of the highest rate one step after the last. A warm-up longer
    than half of the run is shortened to that half.
    """
    peak, warmup_steps = config.learning_rate, min(config.warmup_steps, num_steps // 2)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    start = warmup_steps
    if config.schedule == "wsd":
        start = max(warmup_steps, num_steps - int(config.decay_share * num_steps))
    if step < start:
        return peak
    left = (num_steps - step) / (num_steps - start)
    share = (1 - cos(pi * left)) / 2 if config.schedule == "cosine" else left
    return peak * (config.final_share + (1 - config.final_share) * share)
