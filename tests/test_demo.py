"""`make demo`, on a small scale."""

import bz2
import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

import retnet
from retnet.config import preset
from retnet.data.text import Corpus, Document
from retnet.generation import prefill
from retnet.model import RetNet
from retnet.train.config import TrainConfig

ROOT = Path(retnet.__file__).parent.parent
SMALL = preset("tiny", d_model=32, num_layers=1)


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The recipe, made small, in an empty folder."""
    spec = importlib.util.spec_from_file_location("demo", ROOT / "recipes" / "demo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "MODEL", SMALL)
    monkeypatch.setattr(module, "TRAINING", TrainConfig(steps=3, context=64, threads=1))
    monkeypatch.setattr(module, "SAMPLING", replace(module.SAMPLING, max_tokens=20))
    monkeypatch.setattr(module, "LENGTHS", (1, 100, 3000))
    monkeypatch.chdir(tmp_path)
    return module


def write_texts(folder: Path) -> None:
    """Forty files, of which one or two are held out."""
    folder.mkdir()
    for number in range(40):
        text = f"File {number} of the forty.\n" + "It goes on and on. " * 30
        (folder / f"{number}.txt").write_text(text)


def test_demo_shows_everything(demo: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    write_texts(Path("texts"))
    assert demo.main(["--data", "texts"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "The model learned from other files" in out
    assert all(name in out for name in ("this model", "lzma", "bz2", "as one stream"))
    assert "of the forty." in out  # the prompt: a held-out file's first line
    assert out.count("2.05 kB") == 3  # 4 heads x 8 x 16 x 4 bytes, after 1, 100 and 3,000 tokens
    assert "384 kB" in out  # 3,000 tokens x keys and values x 32 x 2 bytes
    assert "generate 'File" in out
    assert Path("runs/demo-1/model.safetensors").exists()


def test_every_demo_has_its_own_folder(demo: ModuleType) -> None:
    assert demo.free_folder(Path("runs")) == Path("runs/demo-1")
    Path("runs/demo-1").mkdir(parents=True)
    assert demo.free_folder(Path("runs")) == Path("runs/demo-2")


def test_wrong_data_is_one_line(demo: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["--data", "nowhere"]) == 2
    assert capsys.readouterr().err.startswith("retnet: error: data 'nowhere' is not there")
    assert not Path("runs").exists()


def test_one_long_file(demo: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """Its end is held out, so the model did learn from that file: from the text before."""
    Path("book.txt").write_text("\n\n  A line to begin with.\n" + "And then another one.\n" * 400)
    assert demo.main(["--data", "book.txt"]) == 0
    assert "The model learned from the text before it" in " ".join(capsys.readouterr().out.split())


def test_bits_per_byte_of_compressors(demo: ModuleType) -> None:
    files = [b"abc" * 100, b"xyz" * 50]
    packed = len(bz2.compress(files[0])) + len(bz2.compress(files[1]))
    assert demo.bits_per_byte(bz2.compress, files) == 8 * packed / 450


def test_first_line_is_short_and_not_empty(demo: ModuleType) -> None:
    document = Document("a", b"\n \n" + "ä".encode() * 80 + b"\nmore")
    assert demo.first_line([document]) == "ä" * 60


def test_short_text_is_read_again(demo: ModuleType) -> None:
    corpus = Corpus(train=(Document("a", b"ab"),), validation=(Document("b", b"c"),))
    ids = demo.token_ids(corpus, 7)
    assert bytes((ids[0] - 3).tolist()) == b"cabcabc"


def test_reading_on_reads_everything_once(demo: ModuleType, rng: torch.Generator) -> None:
    model = RetNet(SMALL, generator=rng).eval()
    ids = torch.randint(3, 259, (1, 300), generator=rng)
    read = list(demo.read_on(model, ids, (1, 100, 300)))
    assert [int(state.position) for _, state, _ in read] == [1, 100, 300]
    assert len({state.num_bytes for _, state, _ in read}) == 1
    _, expected = prefill(model, ids)
    torch.testing.assert_close(read[-1][1].layers[0], expected.layers[0], rtol=1e-4, atol=1e-5)


def test_command_can_be_pasted(
    demo: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The environment that make sets up is not on the PATH."""
    bin_folder = tmp_path / ".venv" / "bin"
    bin_folder.mkdir(parents=True)
    monkeypatch.setattr(sys, "executable", str(bin_folder / "python"))
    assert demo.command_name() == f"{bin_folder}/python -m retnet"
    (bin_folder / "retnet").touch()
    assert demo.command_name() == ".venv/bin/retnet"
