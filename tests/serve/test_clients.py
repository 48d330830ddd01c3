"""Other people's programs, unchanged: curl and lm-evaluation-harness."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from retnet.data.tokenizer import ByteTokenizer
from retnet.model import RetNet
from tests.serve.running import RunningServer

CURL = ["curl", "-sN", "-H", "Content-Type: application/json"]
ITEMS = [
    {"question": f"{n} plus {m} is", "choices": [str(n + m), str(n), "no number"], "answer": 0}
    for n in range(4)
    for m in range(3)
]
TASK = """\
task: sums
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: question
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - metric: acc
"""


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl(server: RunningServer) -> None:
    body = json.dumps({"prompt": "Hello", "max_tokens": 5, "stream": True})
    done = subprocess.run(
        [*CURL, f"{server.url}/v1/completions", "-d", body],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    lines = done.stdout.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    assert json.loads(lines[0].removeprefix("data: "))["object"] == "text_completion"


@torch.no_grad()
def log_likelihood(model: RetNet, context: str, answer: str) -> float:
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(f"{context} {answer}")
    logprobs = model(torch.tensor([ids]))[0][0].log_softmax(dim=-1)
    start = len(tokenizer.encode(context))
    return sum(float(logprobs[place - 1, ids[place]]) for place in range(start, len(ids)))


def test_lm_eval(server: RunningServer, model: RetNet, tmp_path: Path) -> None:
    """Log-likelihoods over HTTP are those of the model; it finds the tokenizer by itself."""
    data = tmp_path / "sums.jsonl"
    data.write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "sums.yaml").write_text(TASK.format(data=data))
    arguments = f"model=tiny,base_url={server.url}/v1/completions,num_concurrent=4"
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "local-completions"]
    command += ["--model_args", arguments, "--tasks", "sums", "--include_path", str(tasks)]
    command += ["--batch_size", "4", "--log_samples", "--output_path", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    [samples] = (tmp_path / "out").rglob("samples_sums_*.jsonl")
    found: list[dict[str, Any]] = [json.loads(line) for line in samples.read_text().splitlines()]
    assert len(found) == len(ITEMS)
    for sample in found:
        doc = sample["doc"]
        for answer, response in zip(doc["choices"], sample["filtered_resps"], strict=True):
            expected = log_likelihood(model, doc["question"], answer)
            assert float(response[0]) == pytest.approx(expected, abs=1e-3)
