"""A document of any length trains and is scored in the memory of one window."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = """
import json, sys
from retnet.config import ModelConfig
from retnet.measure import peak_rise_bytes
from retnet.score import score_documents
from retnet.train.config import LogConfig, OptimizerConfig, TrainConfig
from retnet.train.loop import train

text, out, steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
config = TrainConfig(
    data=text, out=out, context=512, batch_size=1, steps=steps, carry_state=True, horizon=2,
    precision="fp32", device="cpu", validate_every=10**9, save_every=10**9,
    optimizer=OptimizerConfig(learning_rate=1e-3), log=LogConfig(every=100),
)
model = ModelConfig(d_model=64, num_layers=2, num_heads=2)
found = {}
found["train"] = peak_rise_bytes(lambda: found.update(result=train(model, config)))
trained = found.pop("result").model
document = open(text, "rb").read()
found["score"] = peak_rise_bytes(lambda: score_documents(trained, [document]))
sys.stdout.write(json.dumps(found))
"""


def peaks(folder: Path, num_bytes: int) -> dict[str, int]:
    """Bytes that a fresh process grows by while it trains on a document, and while it scores it."""
    text = folder / f"{num_bytes}.txt"
    text.write_text("".join(f"{number} " for number in range(num_bytes))[:num_bytes])
    steps = max(20, num_bytes // 1024)
    command = [sys.executable, "-c", PROGRAM, str(text), str(folder / str(num_bytes)), str(steps)]
    found: dict[str, Any] = json.loads(subprocess.check_output(command, text=True))
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_million_tokens(tmp_path: Path) -> None:
    short, long = (peaks(tmp_path, size) for size in (10_000, 1_000_000))
    # The text itself is in memory, two bytes a token, and for a moment in a few copies.
    assert long["train"] < 1.1 * short["train"] + 10_000_000, (short, long)
    assert long["score"] < 1.1 * short["score"] + 10_000_000, (short, long)
