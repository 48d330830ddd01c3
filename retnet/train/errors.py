"""What can end a run."""


class TrainingError(ValueError):
    """A run that cannot start or go on. What was saved before is intact."""
