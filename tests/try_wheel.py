"""Tries the wheel in an environment that has it and its dependencies and nothing else: the first
argument is a folder with the wheel, and the environment as `venv`. Run by `make test-wheel`.
"""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

MOST_BYTES = 40_000_000
# None of what an extra brings is there, nor is the repository, nor a network that would answer.
ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "HOME": os.environ.get("HOME", "/"),
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}
TRIAL = """
import retnet, torch
assert not any("site-packages" not in path for path in retnet.__path__), retnet.__path__
for name in retnet.__all__:
    getattr(retnet, name)
import retnet.hf
model = retnet.RetNet(retnet.preset("tiny"))
logits, state = retnet.prefill(model, torch.zeros(1, 5, dtype=torch.int64))
print(retnet.__version__, tuple(logits.shape), state.num_bytes)
"""


def main() -> None:
    """Print what is tried; an error ends it."""
    folder = Path(sys.argv[1]).resolve()
    (wheel,) = folder.glob("*.whl")
    size = wheel.stat().st_size
    print(f"{wheel.name}: {size:,} bytes")
    assert size <= MOST_BYTES, f"larger than {MOST_BYTES:,} bytes"
    python, retnet = folder / "venv/bin/python", folder / "venv/bin/retnet"
    with TemporaryDirectory() as empty:
        (Path(empty) / "a.txt").write_text("It goes on and on. " * 3_000)
        train = "train --train.data a.txt --train.steps 2 --train.out run --train.threads 1"
        run(empty, python, "-m", "pip", "check")
        run(empty, python, "-c", TRIAL)
        run(empty, retnet, "--version")
        run(empty, retnet, "generate", "The river ", "--max_tokens", "40", "--stats")
        run(empty, retnet, *train.split())
        run(empty, retnet, "generate", "It", "--model", "run", "--max_tokens", "8")


def run(folder: str, *command: Path | str) -> None:
    """A command in a folder, after what it is."""
    print("$", *(str(part).strip().partition("\n")[0] for part in command), flush=True)
    subprocess.run(command, cwd=folder, env=ENVIRONMENT, check=True)


if __name__ == "__main__":
    main()
