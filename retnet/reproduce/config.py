"""What is to be reproduced, and how much of it. Imports nothing heavy."""

from dataclasses import dataclass
from typing import Literal, get_args

from retnet.config import nearest

StudyName = Literal[
    "table1",
    "table3",
    "table4",
    "table5",
    "table6",
    "table8",
    "figure5",
    "figure6",
    "recall",
    "controls",
]
Budget = Literal["smoke", "small", "paper"]

STUDY_NAMES: tuple[StudyName, ...] = get_args(StudyName)

ABOUT: dict[StudyName, str] = {
    "table1": "cost of decoding and training against length, as measured exponents",
    "table3": "zero- and few-shot accuracy of checkpoints, by lm_eval",
    "table4": "memory and throughput of training",
    "table5": "RetNet beside its rivals, in domain and out of it",
    "table6": "RetNet with one thing left out",
    "table8": "context length: the last 128 tokens of 2,048",
    "figure5": "loss against size, RetNet and Transformer",
    "figure6": "memory, throughput and latency of decoding",
    "recall": "associative recall: state size against pairs",
    "controls": "what no honest measurement may find: parity far beyond training, random bytes",
}


@dataclass(frozen=True, kw_only=True)
class ReproduceConfig:
    """A study of the paper.

    Attributes:
        study: which table or figure.
        budget: "smoke": seconds, to see that it works; "small": what two cores do in about two
            hours; "paper": the paper's sizes, days to months of a large GPU.
        data: folder with the data sets, each in a folder or file of its name.
        out: folder for the results; what was measured there before is not measured again.
        seeds: how many seeds each model is trained from; fewer than 3 are no result.
        jobs: models trained at the same time, each by its share of the cores.
        models: for table3, folders of checkpoints, separated by commas.
        device: where language models are trained; tasks and costs are on the CPU.
    """

    study: StudyName
    budget: Budget = "small"
    data: str = "data"
    out: str = "runs/reproduce"
    seeds: int = 3
    jobs: int = 1
    models: str | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("study", self.study, STUDY_NAMES),
            ("budget", self.budget, get_args(Budget)),
        ):
            if value not in allowed:
                raise ValueError(
                    f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}"
                    f"{nearest(value, allowed)}"
                )
        for name, count in (("seeds", self.seeds), ("jobs", self.jobs)):
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        if (self.study == "table3") != (self.models is not None):
            raise ValueError(
                f"models are checkpoints for table3 and for no other study, got {self.models!r} "
                f"for {self.study}"
            )
