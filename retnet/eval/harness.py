"""Runs lm_eval on a model of transformers and hands back its figures."""

import logging
import os
import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import datasets  # type: ignore[import-untyped]
import lm_eval  # type: ignore[import-untyped]
import numpy as np
import torch
from jinja2 import TemplateError
from lm_eval.defaults import (  # type: ignore[import-untyped]
    DEFAULT_OTHER_SEED,
    DEFAULT_RANDOM_SEED,
)
from lm_eval.models.huggingface import HFLM  # type: ignore[import-untyped]
from lm_eval.tasks import TaskManager  # type: ignore[import-untyped]
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from retnet.config import nearest
from retnet.eval.config import EvalConfig
from retnet.eval.items import DATA_ERRORS, check_items
from retnet.eval.local_data import LocalDataError
from retnet.eval.local_tasks import first_misfit, local_task_manager

# lm_eval's own 100,000 take minutes for a perplexity; the standard error of 1,000 is off by 2 %.
_BOOTSTRAP_ITERATIONS = 1000

# Warnings of lm_eval about what is meant here.
_EXPECTED_WARNINGS = (
    "`pretrained` model kwarg is not of type `str`",
    "Passed an already-initialized model through `pretrained`",
    "Custom kwargs can be passed to `--metadata`",
    "is defined, but aggregation is not",
    "is defined, but higher_is_better is not",
)
LoadedTasks = dict[str, dict[str, Any]]
_LOGGERS = ("lm_eval.models.huggingface", "lm_eval.api.task")


@dataclass(frozen=True, kw_only=True)
class Score:
    """One metric of one task.

    Attributes:
        task: its name in lm_eval, or a group's.
        version: of the task's definition.
        num_fewshot: solved examples before each question.
        num_items: items that were scored.
        metric: its name in lm_eval; where answers were filtered first, with the filter's name.
        value: what lm_eval computed.
        stderr: its standard error; None where lm_eval has none.
        chance: what guessing gives; None where that isn't known.
    """

    task: str
    version: str
    num_fewshot: int | None
    num_items: int | None
    metric: str
    value: float
    stderr: float | None
    chance: float | None


def evaluate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: EvalConfig
) -> list[Score]:
    """The figures of a model on some tasks: of `score`, on what `prepare` loads."""
    return score(model, tokenizer, config, prepare(config))


def prepare(config: EvalConfig) -> LoadedTasks:
    """The tasks of a configuration, their data read and checked; it takes seconds.

    Raises ValueError for a task that isn't known, and data that are missing or don't fit.
    """
    with _quiet(), redirect_stdout(sys.stderr):
        _seed()
        return load_tasks(TaskManager(), config)


def score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: EvalConfig,
    tasks: LoadedTasks,
) -> list[Score]:
    """The figures of a model on loaded tasks.

    Every text that is scored begins with the tokenizer's bos, exactly once. As lm_eval does, this
    seeds Python's, numpy's and torch's global generators. What lm_eval prints goes to stderr.

    Raises ValueError for data that don't fit, answers longer than `max_length`, and a tokenizer
    with more tokens than the model.
    """
    _check_vocabulary(model, tokenizer)
    with _quiet(), _one_process(), redirect_stdout(sys.stderr):
        _seed()
        # Not simple_evaluate: it would ask git and pip about this machine, which takes seconds
        # and writes "fatal: not a git repository".
        with _doubting_data(config, LookupError, TypeError, TemplateError):
            found = lm_eval.evaluate(
                lm=language_model(model, tokenizer, config),
                task_dict=tasks,
                limit=config.limit,
                bootstrap_iters=_BOOTSTRAP_ITERATIONS,
            )
    return _scores(found)


def language_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: EvalConfig
) -> "BosLM":
    """The model as lm_eval wants it."""
    return BosLM(
        pretrained=model,
        backend="causal",
        tokenizer=beginning_with_bos(tokenizer),
        add_bos_token=True,
        batch_size=config.batch_size,
        max_length=config.max_length,
        softmax_dtype="float32",
    )


class BosLM(HFLM):  # type: ignore[misc]
    """lm_eval's model of transformers, for a tokenizer that begins texts with bos.

    ValueError, where lm_eval would fail an assertion, for answers longer than `max_length`.
    """

    def _loglikelihood_tokens(
        self, requests: Any, disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        self._require_length(max((len(answer) for _, _, answer in requests), default=0))
        found: list[tuple[float, bool]] = super()._loglikelihood_tokens(
            requests, disable_tqdm, override_bs
        )
        return found

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """Texts that continue prompts; one token of the prompt must have its place too."""
        settings = (request.args[1] for request in requests)
        longest = max((each.get("max_gen_toks", self.max_gen_toks) for each in settings), default=0)
        self._require_length(longest + 1)
        written: list[str] = super().generate_until(requests, disable_tqdm)
        return written

    def _require_length(self, longest: int) -> None:
        if longest > self.max_length:
            raise ValueError(
                f"max_length must be at least {longest:,} for the longest answer of these tasks, "
                f"got {self.max_length:,}"
            )

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods of whole texts, before which lm_eval puts bos by itself."""
        self.add_bos_token = False
        try:
            return super().loglikelihood_rolling(requests, disable_tqdm)
        finally:
            self.add_bos_token = True


def beginning_with_bos(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerFast:
    """A copy of a tokenizer that puts bos before every text, whatever it added before.

    One without a bos adds nothing then. Raises ValueError for one that has no tokenizer.json.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(
            f"tokenizer must be a fast one, got {type(tokenizer).__name__}; save its tokenizer.json"
        )
    copied = deepcopy(tokenizer)
    bos, bos_id = copied.bos_token, copied.bos_token_id
    copied.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A" if bos is None else f"{bos} $A",
        special_tokens=[] if bos is None else [(bos, bos_id)],
    )
    return copied


def load_tasks(known: TaskManager, config: EvalConfig) -> LoadedTasks:
    """The tasks and groups of a configuration with their data, as `lm_eval.evaluate` wants them.

    known: all tasks of the package.
    """
    for name in config.task_names:
        if name not in known.task_index:
            hint = nearest(name, known.all_tasks)
            raise ValueError(f"tasks has {name!r}, which lm_eval doesn't know{hint}")
    loaded = _download(known, config) if config.task_data is None else _read_files(known, config)
    for name, task in loaded["tasks"].items():
        num_fewshot = config.num_examples(task.get_config("num_fewshot"))
        check_items(name, task, limit=config.limit, num_fewshot=num_fewshot)
        task.set_config(key="num_fewshot", value=num_fewshot)
        task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
    return loaded


def _download(known: TaskManager, config: EvalConfig) -> LoadedTasks:
    try:
        return dict(known.load(list(config.task_names)))
    except OSError as error:
        raise ValueError(
            f"tasks {config.tasks!r} could not be downloaded ({error}); pass --task_data DIR to "
            "read their data from files"
        ) from error


def _read_files(known: TaskManager, config: EvalConfig) -> LoadedTasks:
    with TemporaryDirectory() as workspace:
        manager = local_task_manager(known, config, Path(workspace))
        try:
            return dict(manager.load(list(config.task_names)))
        except LocalDataError:
            raise
        except DATA_ERRORS as error:
            raise first_misfit(manager) or error from error


@contextmanager
def _doubting_data(config: EvalConfig, *errors: type[Exception]) -> Iterator[None]:
    """Say of such errors inside that local files may not be what their task expects."""
    try:
        yield
    except errors as error:
        if config.task_data is None:
            raise
        raise ValueError(
            f"task_data {config.task_data!r} doesn't fit one of {', '.join(config.task_names)} "
            f"({type(error).__name__}: {error}); a task's files need the columns and values that "
            "its data set has on the hub"
        ) from error


def _check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    embedding: Any = model.get_input_embeddings()
    rows = embedding.weight.shape[0]
    if len(tokenizer) > rows:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens and the model {rows}; pass a folder in "
            "which they belong together"
        )


def _scores(found: Mapping[str, Any]) -> list[Score]:
    """What `lm_eval.evaluate` found, metric by metric."""
    return [
        Score(
            task=task,
            version=str(found["versions"].get(task, "")),
            num_fewshot=found["n-shot"].get(task),
            num_items=found["n-samples"].get(task, {}).get("effective"),
            metric=metric if kind == "none" else f"{metric} ({kind})",
            value=value,
            stderr=_number(results.get(f"{metric}_stderr,{kind}")),
            chance=_chance(found, task, metric),
        )
        for task, results in found["results"].items()
        for metric, kind, value in _metrics(results)
    ]


def _metrics(results: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """(metric, filter, value) of a task's results: their keys are "metric,filter"."""
    for key, value in results.items():
        metric, _, kind = key.partition(",")
        if kind and not metric.endswith("_stderr"):
            yield metric, kind, value


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, float | int) else None


def _chance(found: Mapping[str, Any], task: str, metric: str) -> float | None:
    """The accuracy of guessing: one of the choices, or (0) a word out of all."""
    kind = found["configs"].get(task, {}).get("output_type")
    if kind == "loglikelihood" and metric == "acc":
        return 0.0
    if kind != "multiple_choice" or metric not in ("acc", "acc_norm"):
        return None
    items = found["samples"][task]
    if any("acc_mutual_info" in item["metrics"] for item in items):
        return None  # each choice is scored twice then, with and without the question
    if any(isinstance(item["target"], list) for item in items):
        return None  # several choices are right
    return fmean(1 / len(item["arguments"]) for item in items)


def _seed() -> None:
    """What lm_eval does first: some tasks draw from the global generators."""
    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)  # noqa: NPY002, what they draw from
    torch.manual_seed(DEFAULT_OTHER_SEED)


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside, no warnings about what is meant here, and no bar for each look at a data set."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    had_bars = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    for logger in loggers:
        logger.addFilter(_is_unexpected)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(_is_unexpected)
        if had_bars:
            datasets.enable_progress_bars()


def _is_unexpected(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    return not any(expected in message for expected in _EXPECTED_WARNINGS)


@contextmanager
def _one_process() -> Iterator[None]:
    """Inside, lm_eval forks no processes for its standard errors: torch's threads don't survive."""
    name = "DISABLE_MULTIPROC"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
