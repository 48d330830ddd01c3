"""What is evaluated, on how much, and how: a frozen dataclass that checks itself."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """An evaluation.

    Attributes:
        tasks: names of lm_eval's tasks, groups or tags, separated by commas.
        task_data: folder with the tasks' data as files, so that nothing is downloaded; None lets
            lm_eval download them.
        batch_size: texts scored at once; it changes the speed, not the result.
        limit: the first so many items of each task; None for all.
        num_fewshot: solved examples before each question; None for each task's own number.
        max_length: tokens a text may have before its beginning is cut off. The model has no such
            limit, the memory for a text's logits has one.
    """

    tasks: str = "hellaswag,piqa,winogrande,lambada_openai"
    task_data: str | None = None
    batch_size: int = 16
    limit: int | None = None
    num_fewshot: int | None = None
    # lm_eval would take the 2,048 it gives to models that name no limit and cut texts in silence.
    # This is longer than any task's, and 1 GB of logits for the byte tokenizer.
    max_length: int = 2**20

    def __post_init__(self) -> None:
        if not self.task_names:
            raise ValueError(
                f"tasks must name at least one, got {self.tasks!r}; pass such as 'piqa,hellaswag'"
            )
        for name, least in (("batch_size", 1), ("limit", 1), ("num_fewshot", 0), ("max_length", 2)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")

    @property
    def task_names(self) -> tuple[str, ...]:
        """The names in `tasks`, each once, in their order."""
        names = (name.strip() for name in self.tasks.split(","))
        return tuple(dict.fromkeys(name for name in names if name))

    def num_examples(self, own: int | None) -> int:
        """Solved examples before a question of a task that has a number of its own, or None.

        As in lm_eval, a task's own 0 is never overruled.
        """
        if own == 0 or self.num_fewshot is None:
            return own or 0
        return self.num_fewshot
