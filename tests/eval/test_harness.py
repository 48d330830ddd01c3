"""Figures of lm_eval on a RetNet, against those worked out from the core's logits."""

import logging
import os
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from math import exp
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval", exc_type=ImportError)

import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from retnet.data.tokenizer import ByteTokenizer
from retnet.eval import harness
from retnet.eval.config import EvalConfig
from retnet.eval.harness import BosLM, Score, beginning_with_bos, evaluate, language_model
from retnet.hf import RetNetForCausalLM
from retnet.model import RetNet
from retnet.score import score_documents
from tests.eval.conftest import HELLASWAG, LAMBADA, PIQA, WINOGRANDE, write_lines

PAIRS = [
    ("Question: how?\nAnswer:", " so"),
    ("Question: how?\nAnswer:", " in a much longer way than that"),
    ("", "nothing before"),
    ("naïve ✓ <eos>", " café"),
    ("a context " * 40, "end"),
    ("ends in spaces  ", "x"),
    ("one", "1"),
]
BOS = ByteTokenizer.bos_id


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    directory = tmp_path_factory.mktemp("tokenizer")
    ByteTokenizer().save(directory)
    return AutoTokenizer.from_pretrained(directory)


@pytest.fixture(scope="module")
def model(core: RetNet) -> RetNetForCausalLM:
    return RetNetForCausalLM.from_retnet(core)


def log_likelihood(core: RetNet, context: str, continuation: str) -> float:
    """Nats of a continuation, of a text that begins with bos; by the core alone."""
    before, after = context.encode(), continuation.encode()
    ids = torch.tensor([BOS, *(byte + 3 for byte in before + after)])
    with torch.no_grad():
        logits, _ = core(ids[None, :-1])
    chosen = logits[0].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
    return float(chosen[len(before) :].sum())


def requests(pairs: Sequence[tuple[str, ...]], kind: str = "loglikelihood") -> list[Instance]:
    return [
        Instance(request_type=kind, doc={}, arguments=pair, idx=number)
        for number, pair in enumerate(pairs)
    ]


def scored(scores: Sequence[Score]) -> dict[tuple[str, str], float]:
    return {(score.task, score.metric): score.value for score in scores}


# --- texts and their likelihoods


@pytest.mark.parametrize("batch_size", [1, 16])
def test_likelihoods_are_the_cores(
    batch_size: int, core: RetNet, model: RetNetForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    lm = language_model(model, tokenizer, EvalConfig(batch_size=batch_size))
    found = [nats for nats, _ in lm.loglikelihood(requests(PAIRS), disable_tqdm=True)]
    # lm_eval gives spaces at the end of a context to what follows.
    moved = [(text.rstrip(" "), text[len(text.rstrip(" ")) :] + rest) for text, rest in PAIRS]
    assert found == pytest.approx([log_likelihood(core, *pair) for pair in moved], abs=1e-3)


def test_batches_change_nothing(model: RetNetForCausalLM, tokenizer: Any) -> None:
    """Shorter texts are padded on their right, after everything that is scored."""
    one, many = (
        language_model(model, tokenizer, EvalConfig(batch_size=size)).loglikelihood(
            requests(PAIRS), disable_tqdm=True
        )
        for size in (1, 16)
    )
    assert [nats for nats, _ in one] == pytest.approx([nats for nats, _ in many], abs=1e-3)
    assert [is_greedy for _, is_greedy in one] == [is_greedy for _, is_greedy in many]


def test_whole_texts_are_scored_as_documents(
    core: RetNet, model: RetNetForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    texts = ["Some text, and more. " * 10, "naïve ✓"]
    lm = language_model(model, tokenizer, EvalConfig())
    found = lm.loglikelihood_rolling(requests([(text,) for text in texts], "loglikelihood_rolling"))
    nats = score_documents(core, [text.encode() for text in texts]).nats
    assert [-each for each in found] == pytest.approx(nats, abs=1e-3)


@pytest.fixture
def read_ids(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The rows of ids that the model is given, from now on."""
    rows: list[list[int]] = []
    call, write = BosLM._model_call, BosLM._model_generate

    def calling(self: BosLM, inps: torch.Tensor) -> torch.Tensor:
        rows.extend(inps.tolist())
        return call(self, inps)

    def writing(self: BosLM, context: torch.Tensor, **rest: Any) -> torch.Tensor:
        rows.extend(context.tolist())
        return write(self, context, **rest)

    monkeypatch.setattr(BosLM, "_model_call", calling)
    monkeypatch.setattr(BosLM, "_model_generate", writing)
    return rows


def test_every_text_begins_with_one_bos(
    read_ids: list[list[int]], model: RetNetForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Contexts, empty ones, whole texts, and prompts that are continued."""
    lm = language_model(model, tokenizer, EvalConfig(batch_size=4))
    lm.loglikelihood(requests(PAIRS), disable_tqdm=True)
    lm.loglikelihood_rolling(requests([("a text",)], "loglikelihood_rolling"))
    prompts = [(text, {"until": ["\n"], "max_gen_toks": 2}) for text in ("a", "a longer one")]
    lm.generate_until(requests(prompts, "generate_until"), disable_tqdm=True)
    assert len(read_ids) == len(PAIRS) + 1 + len(prompts)
    for row in read_ids:
        text = [token for token in row if token != ByteTokenizer.pad_id]
        assert text[0] == BOS
        assert text.count(BOS) == 1


def test_bos_comes_once_whatever_the_tokenizer_does(tokenizer: PreTrainedTokenizerFast) -> None:
    """Ours adds bos, one adds bos and eos, another nothing. It is copied, not changed."""
    bare, adding = deepcopy(tokenizer), deepcopy(tokenizer)
    bare.backend_tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    adding.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    for each in (tokenizer, adding, bare):
        assert beginning_with_bos(each).encode("ab") == [BOS, 100, 101]
    assert adding.encode("ab") == [BOS, 100, 101, 2]
    assert bare.encode("ab") == [100, 101]


def test_no_bos_where_there_is_none(tokenizer: PreTrainedTokenizerFast) -> None:
    without = deepcopy(tokenizer)
    without.bos_token = None
    assert beginning_with_bos(without).encode("ab") == [100, 101]


def test_long_texts_are_read_whole(
    read_ids: list[list[int]], model: RetNetForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    """lm_eval's own limit is 2,048 tokens."""
    lm = language_model(model, tokenizer, EvalConfig())
    lm.loglikelihood(requests([("long " * 600, "end")]), disable_tqdm=True)
    assert [len(row) for row in read_ids] == [1 + 3000 + 2]


# --- tasks


def test_figures_follow_from_likelihoods(
    one_index: TaskManager,
    core: RetNet,
    model: RetNetForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    task_data: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The official prompts, written out here, and the choice that is likeliest."""
    found = scored(evaluate(model, tokenizer, EvalConfig(task_data=str(task_data))))

    def best(contexts: Sequence[str], choices: Sequence[str], divisors: Sequence[int]) -> int:
        nats = [
            log_likelihood(core, context, f" {choice}") / divisor
            for context, choice, divisor in zip(contexts, choices, divisors, strict=True)
        ]
        return nats.index(max(nats))

    right = []
    for item in PIQA:
        choices = [str(item["sol1"]), str(item["sol2"])]
        prompt = f"Question: {item['goal']}\nAnswer:"
        lengths = [len(choice) for choice in choices]
        right.append(
            [best([prompt] * 2, choices, each) == item["label"] for each in ([1, 1], lengths)]
        )
    acc, acc_norm = (sum(column) / len(PIQA) for column in zip(*right, strict=True))
    assert (found["piqa", "acc"], found["piqa", "acc_norm"]) == (acc, acc_norm)

    right = []
    for item in WINOGRANDE:
        start, _, end = item["sentence"].partition("_")
        contexts = [start + item["option1"], start + item["option2"]]
        right.append(best(contexts, [end.strip()] * 2, [1, 1]) == int(item["answer"]) - 1)
    assert found["winogrande", "acc"] == sum(right) / len(WINOGRANDE)

    _, label, *endings = HELLASWAG.splitlines()
    prompt = "Canoeing: A man sits. He"
    assert found["hellaswag", "acc"] == (best([prompt] * 4, endings, [1] * 4) == int(label))

    nats = []
    for item in LAMBADA:
        context, space, word = item["text"].rpartition(" ")
        nats.append(log_likelihood(core, context, space + word))
    assert found["lambada_openai", "perplexity"] == pytest.approx(exp(-fmean(nats)), rel=1e-3)
    assert capsys.readouterr().out == ""


def test_solved_examples_as_in_lm_eval(
    one_index: TaskManager,
    model: RetNetForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    task_data: Path,
) -> None:
    """What `evaluate` sets up by itself gives what `simple_evaluate` gives."""
    config = EvalConfig(tasks="piqa", task_data=str(task_data), num_fewshot=2, limit=4)
    ours = evaluate(model, tokenizer, config)
    theirs = lm_eval.simple_evaluate(
        model=language_model(model, tokenizer, config),
        tasks=list(harness.load_tasks(one_index, config)["tasks"].values()),
        num_fewshot=2,
        limit=4,
        task_manager=one_index,
    )
    assert scored(ours) == {
        ("piqa", metric): theirs["results"]["piqa"][f"{metric},none"]
        for metric in ("acc", "acc_norm")
    }
    assert {(score.num_fewshot, score.num_items, score.chance) for score in ours} == {(2, 4, 0.5)}


@pytest.mark.slow
def test_random_weights_guess(
    one_index: TaskManager,
    model: RetNetForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    data_dir: Path,
) -> None:
    scores = evaluate(model, tokenizer, EvalConfig(task_data=str(data_dir), limit=100))
    accuracies = {score.task: score for score in scores if score.metric == "acc"}
    chances = {task: score.chance for task, score in accuracies.items()}
    assert chances == {"hellaswag": 0.25, "piqa": 0.5, "winogrande": 0.5, "lambada_openai": 0.0}
    for score in accuracies.values():
        assert score.chance is not None
        assert score.stderr is not None
        assert abs(score.value - score.chance) <= 3 * score.stderr
        assert score.num_items == 100


def test_a_group_of_tasks(
    one_index: TaskManager,
    model: RetNetForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    """Its tasks take their data from folders of their own; the group has their mean."""
    rows = [
        {"question": f"Q{answer}", "choices": ["1", "2", "3", "4"], "answer": answer}
        for answer in range(4)
    ]
    tasks = sorted(one_index.task_index["mmlu_stem_tasks"].tags)
    for task in tasks:
        write_lines(tmp_path / task / "test.jsonl", rows)
    found = evaluate(model, tokenizer, EvalConfig(tasks="mmlu_stem", task_data=str(tmp_path)))
    values = {score.task: score.value for score in found}
    assert values.keys() == {"mmlu_stem", *tasks}
    assert values["mmlu_stem"] == pytest.approx(sum(values[task] for task in tasks) / len(tasks))


# --- what is refused


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"tasks": "piqa,hellaswga"}, "tasks has 'hellaswga', .* did you mean 'hellaswag'"),
        ({"task_data": "nowhere"}, "task_data 'nowhere' is not a folder"),
        ({"tasks": "arc_easy"}, "has no folder 'arc_easy'"),
        ({"tasks": "winogrande", "num_fewshot": 2}, "no file of the split 'train'"),
        ({"tasks": "fda"}, "task 'fda' gets its data by its own code"),
        ({"tasks": "flan_held_in"}, "group 'flan_held_in' defines tasks of its own"),
    ],
)
def test_tasks_that_can_not_be_loaded(
    settings: dict[str, Any], says: str, known: TaskManager, task_data: Path
) -> None:
    with pytest.raises(ValueError, match=says):
        harness.load_tasks(known, EvalConfig(**{"task_data": str(task_data), **settings}))


def test_data_of_another_task(known: TaskManager, tmp_path: Path) -> None:
    """A missing column was reported as a "malformed node", without the task or the file."""
    write_lines(tmp_path / "piqa" / "validation.jsonl", [{"goal": "g", "sol1": "a", "label": 0}])
    write_lines(tmp_path / "winogrande" / "validation.jsonl", WINOGRANDE)
    config = EvalConfig(tasks="winogrande,piqa", task_data=str(tmp_path))
    with pytest.raises(ValueError, match=r"validation.jsonl has no column 'sol2', which piqa"):
        harness.load_tasks(known, config)


ARC = {"question": "q", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"}
BOOLQ = {"question": "is it", "passage": "It is.", "label": 1}
PIQA_ITEM = PIQA[0]


@pytest.mark.parametrize(
    ("task", "item", "wrong", "says"),
    [
        ("boolq", BOOLQ, {"label": -1}, "item 2: the answer is -1; .* right choice, 0 to 1"),
        ("boolq", BOOLQ, {"label": 2}, "item 2: the answer is 2"),
        ("boolq", BOOLQ, {"label": None}, "item 2: no answer"),
        ("winogrande", WINOGRANDE[0], {"answer": ""}, "item 2 doesn't fit the task .KeyError"),
        ("piqa", PIQA_ITEM, {"sol2": None}, "item 2: expected texts to choose from"),
    ],
)
def test_items_that_can_not_be_scored(
    task: str,
    item: dict[str, Any],
    wrong: dict[str, Any],
    says: str,
    known: TaskManager,
    tmp_path: Path,
) -> None:
    """lm_eval looks at the first item when it loads a task, and scores others in silence: an answer
    that is none of the choices was an accuracy of 0. Items beyond the limit don't matter."""
    write_lines(tmp_path / task / "validation.jsonl", [item, {**item, **wrong}])
    config = EvalConfig(tasks=task, task_data=str(tmp_path), num_fewshot=0)
    with pytest.raises(ValueError, match=f"validation.jsonl, {says}"):
        harness.load_tasks(known, config)
    harness.load_tasks(known, replace(config, limit=1))


def test_a_missing_column_is_no_answer(known: TaskManager, tmp_path: Path) -> None:
    """lm_eval took its name for the answer."""
    item = {name: text for name, text in BOOLQ.items() if name != "label"}
    write_lines(tmp_path / "boolq" / "validation.jsonl", [item])
    with pytest.raises(ValueError, match="item 1: no column 'label'"):
        harness.load_tasks(known, EvalConfig(tasks="boolq", task_data=str(tmp_path)))


@pytest.mark.parametrize(
    ("task", "item"),
    [
        (
            "arc_easy",
            {
                "question": "q",
                "choices": {"text": ["x", "y"], "label": ["A", "B"]},
                "answerKey": "B",
            },
        ),
        ("lambada_openai", LAMBADA[0]),
        ("truthfulqa_mc2", {"question": "q", "mc2_targets": {"choices": ["a"], "labels": [1]}}),
    ],
)
def test_answers_of_other_kinds(
    task: str, item: dict[str, Any], known: TaskManager, tmp_path: Path
) -> None:
    """Letters, texts, and those with a rule of their own."""
    write_lines(tmp_path / task / "test.jsonl", [item])
    write_lines(tmp_path / task / "validation.jsonl", [item])
    loaded = harness.load_tasks(
        known, EvalConfig(tasks=task, task_data=str(tmp_path), num_fewshot=0)
    )
    assert list(loaded["tasks"]) == [task]


def test_a_column_of_several_kinds(known: TaskManager, tmp_path: Path) -> None:
    write_lines(tmp_path / "boolq" / "validation.jsonl", [BOOLQ, {**BOOLQ, "label": "no"}])
    with pytest.raises(ValueError, match=r"validation.jsonl: a column has values of several kinds"):
        harness.load_tasks(known, EvalConfig(tasks="boolq", task_data=str(tmp_path)))


def test_examples_of_one_item(known: TaskManager, tmp_path: Path) -> None:
    """Python's "Sample larger than population" was all that was said."""
    for split in ("train", "test"):
        write_lines(tmp_path / "gsm8k" / f"{split}.jsonl", [{"question": "q", "answer": "#### 1"}])
    says = "gsm8k: 5 solved examples wanted before each item, and .*train.jsonl has 1;"
    with pytest.raises(ValueError, match=says):
        harness.load_tasks(known, EvalConfig(tasks="gsm8k", task_data=str(tmp_path)))


def test_examples_without_answers(known: TaskManager, tmp_path: Path) -> None:
    write_lines(tmp_path / "boolq" / "validation.jsonl", [BOOLQ])
    write_lines(tmp_path / "boolq" / "train.jsonl", [BOOLQ, {**BOOLQ, "label": -1}])
    config = EvalConfig(tasks="boolq", task_data=str(tmp_path), num_fewshot=1)
    with pytest.raises(ValueError, match=r"train.jsonl, item 2: the answer is -1"):
        harness.load_tasks(known, config)


@pytest.mark.usefixtures("one_index")
@pytest.mark.parametrize(("task", "least"), [("piqa", 26), ("lambada_openai", 6)])
def test_answers_longer_than_texts_may_be(
    task: str, least: int, model: RetNetForCausalLM, tokenizer: Any, task_data: Path
) -> None:
    """lm_eval fails an assertion."""
    config = EvalConfig(tasks=task, task_data=str(task_data), max_length=4)
    with pytest.raises(ValueError, match=f"max_length must be at least {least} .*, got 4"):
        evaluate(model, tokenizer, config)


def test_written_answers_longer_than_texts_may_be(model: RetNetForCausalLM, tokenizer: Any) -> None:
    lm = language_model(model, tokenizer, EvalConfig(max_length=8))
    prompts = [("a", {"until": ["\n"], "max_gen_toks": 8})]
    with pytest.raises(ValueError, match=r"max_length must be at least 9 .*, got 8"):
        lm.generate_until(requests(prompts, "generate_until"), disable_tqdm=True)


def test_download_without_network(known: TaskManager, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(names: list[str]) -> None:
        raise ConnectionError("Couldn't reach 'baber/piqa' on the Hub")

    monkeypatch.setattr(known, "load", fail)
    with pytest.raises(ValueError, match=r"'piqa' could not be downloaded .* pass --task_data DIR"):
        harness.load_tasks(known, EvalConfig(tasks="piqa"))


def test_tokenizer_of_a_larger_model(
    core: RetNet, tokenizer: PreTrainedTokenizerFast, task_data: Path
) -> None:
    larger = deepcopy(tokenizer)
    larger.add_tokens(["<more>"])
    model = RetNetForCausalLM.from_retnet(core)
    with pytest.raises(ValueError, match="the tokenizer has 260 tokens and the model 259"):
        evaluate(model, larger, EvalConfig(task_data=str(task_data)))


def test_nothing_stays_changed(
    one_index: TaskManager,
    model: RetNetForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    task_data: Path,
) -> None:
    """Neither the environment nor what is logged afterwards."""
    before = dict(os.environ)
    evaluate(model, tokenizer, EvalConfig(tasks="winogrande", task_data=str(task_data)))
    assert dict(os.environ) == before
    assert not logging.getLogger("lm_eval.api.task").filters
