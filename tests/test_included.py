"""The trained model that comes with the package: whoever names none gets it, and it has learnt."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoTokenizer

from retnet import INCLUDED_MODEL, load_checkpoint, preset
from retnet.checkpoint import read_config
from retnet.cli import main
from retnet.data.tokenizer import load_tokenizer
from retnet.hf import RetNetForCausalLM
from retnet.score import score_documents

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "recipes/included.yaml"
PROSE = (
    "The town stands on the northern bank of the river, and was founded in the twelfth century. "
    "During the war it was occupied twice, and the old bridge was destroyed. After that a new one "
    "was built of stone, which is still used today by most of the people who live in the villages "
    "on the other side. In 1974 it was made a national monument."
)


def test_it_is_small_and_of_16_bits() -> None:
    assert (INCLUDED_MODEL / "model.safetensors").stat().st_size <= 25_000_000
    assert {weight.dtype for weight in load_checkpoint().parameters()} == {torch.bfloat16}


def test_it_is_what_the_recipe_makes() -> None:
    recipe = yaml.safe_load(RECIPE.read_text())
    assert read_config(INCLUDED_MODEL) == preset(recipe["preset"], **recipe["model"])


def test_its_card_is_whole() -> None:
    """What the Hugging Face hub reads of it, and the name by which servers call the model."""
    _, head, text = (INCLUDED_MODEL / "README.md").read_text().split("---\n", 2)
    fields = yaml.safe_load(head)
    assert fields["license"] == "apache-2.0"
    assert fields["pipeline_tag"] == "text-generation"
    assert text.strip().startswith(f"# {INCLUDED_MODEL.name}")


def test_it_has_learnt() -> None:
    """Prose that it has never read costs it less than two bits a byte; chance is eight."""
    model = load_checkpoint(dtype=torch.float32)
    texts = [PROSE, PROSE[::-1]]
    score = score_documents(model, [text.encode() for text in texts])
    forward, backward = (
        bits / size for bits, size in zip(score.document_bits, score.num_bytes, strict=True)
    )
    assert forward < 2 < backward - 1


@pytest.mark.parametrize("prompt", ["The river ", "", "Привет, ", "長い"])
def test_generate(prompt: str, capfd: pytest.CaptureFixture[str]) -> None:
    """A prompt in another script, or none at all, is no reason to stop."""
    assert main(["generate", prompt, "--max_tokens", "30", "--temperature", "0"]) == 0
    written = capfd.readouterr().out
    assert written.isprintable() or "\n" in written
    assert load_tokenizer().encode(written)


def test_chat() -> None:
    """It goes on with what it is told, and says which model it is."""
    command = [sys.executable, "-m", "retnet", "chat", "--max_tokens", "8", "--temperature", "0"]
    done = subprocess.run(command, input="The river", capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert INCLUDED_MODEL.name in done.stderr


def test_transformers_gets_it_without_a_name() -> None:
    model = RetNetForCausalLM.from_pretrained()
    tokenizer = AutoTokenizer.from_pretrained(INCLUDED_MODEL)
    assert model.dtype == torch.bfloat16
    ids = tokenizer(PROSE, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        features, _ = (core := load_checkpoint()).features(ids)
        torch.testing.assert_close(model(ids).logits, core.logits(features), rtol=0, atol=0)
    named = RetNetForCausalLM.from_pretrained(INCLUDED_MODEL, dtype=torch.float32)
    assert named.dtype == torch.float32
