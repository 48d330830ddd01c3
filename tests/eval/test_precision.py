"""What fewer bits for weights cost on a text."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from retnet.checkpoint import load_checkpoint, save_checkpoint
from retnet.cli import main
from retnet.data.text import Document
from retnet.data.tokenizer import ByteTokenizer
from retnet.decoding import Decoder
from retnet.eval.precision import score_precisions
from retnet.model import RetNet
from retnet.score import score_documents

TEXTS = (Document("a", "Zürich, 1888".encode()), Document("b", b"and so on " * 30))


@pytest.fixture
def folder(core: RetNet, tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "model", core, ByteTokenizer())
    return tmp_path / "model"


def test_each_is_the_model_as_it_is_served(folder: Path) -> None:
    """fp32 is the plain score; int8 is that of what a decoder leaves of the model."""
    scores = list(score_precisions(folder, TEXTS, int8=True, device=torch.device("cpu")))
    assert [score.weights for score in scores] == ["fp32", "bf16", "int8"]
    assert {score.num_bytes for score in scores} == {13 + 300}
    texts = [text.data for text in TEXTS]
    exact, rounded = (
        score_documents(load_checkpoint(folder, dtype=dtype), texts).bits_per_byte
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert scores[0].bits_per_byte == pytest.approx(exact, rel=1e-6)
    assert scores[1].bits_per_byte == pytest.approx(rounded, rel=1e-6)
    assert scores[2].bits_per_byte != scores[1].bits_per_byte
    assert scores[2].bits_per_byte == pytest.approx(exact, rel=0.01)


def test_the_steps_of_a_server_cost_the_same(folder: Path) -> None:
    """The text token by token through a decoder with int8 weights."""
    text = TEXTS[1].data[:60]
    decoder = Decoder(load_checkpoint(folder, dtype=torch.bfloat16).eval(), int8=True)
    state, nats = decoder.new_state(1), 0.0
    last = ByteTokenizer.bos_id
    for token in ByteTokenizer().encode(text):
        logits = decoder.step_(torch.tensor([last]), state, torch.tensor([0]))
        nats -= float(logits[0].log_softmax(-1)[token])
        last = token
    *_, int8 = score_precisions(
        folder, [Document("b", text)], int8=True, device=torch.device("cpu")
    )
    assert nats / np.log(2) / len(text) == pytest.approx(int8.bits_per_byte, rel=2e-3)


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It needs no lm_eval, and prints every figure that --out keeps."""
    (tmp_path / "text.txt").write_text("Grüezi mitenand. " * 20)
    arguments = ["--model", str(folder), "--text", str(tmp_path / "text.txt"), "--quantize", "int8"]
    assert main(["eval", *arguments, "--out", str(tmp_path / "out.json")]) == 0
    shown = capsys.readouterr().out
    report = json.loads((tmp_path / "out.json").read_text())
    assert [score["weights"] for score in report["scores"]] == ["fp32", "bf16", "int8"]
    for score in report["scores"]:
        assert f"{score['bits_per_byte']:.4f}" in shown
    assert report["settings"]["quantize"] == "int8"
    assert "1 document, 360 bytes" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--quantize", "int8"], "--quantize goes with --text"),
        (["--text", "nowhere.txt"], "--text 'nowhere.txt' is not there"),
    ],
)
def test_refusals(
    arguments: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "--model", str(folder), *arguments]) == 2
    assert message in capsys.readouterr().err
