"""What general compressors make of texts."""

import sys
from pathlib import Path

import pytest

from retnet.data.text import Document
from retnet.eval.compressors import score_compressors


def bits_per_byte(*texts: bytes) -> list[float | None]:
    documents = [Document(str(index), text) for index, text in enumerate(texts)]
    return [score.bits_per_byte for score in score_compressors(documents)]


@pytest.mark.parametrize(
    ("name", "xz", "bzip2", "ppmd"),
    [
        ("alice29.txt", 2.553, 2.272, 2.039),
        ("asyoulik.txt", 2.850, 2.529, 2.310),
        ("lcet10.txt", 2.240, 2.019, 1.805),
    ],
)
def test_known_figures(data_dir: Path, name: str, xz: float, bzip2: float, ppmd: float) -> None:
    """Those of the tools xz and bzip2, and of PPMd, on texts of the Canterbury corpus."""
    path = data_dir / "canterbury" / name
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    found = bits_per_byte(path.read_bytes())
    assert found[:2] == pytest.approx([xz, bzip2], abs=0.001)
    if found[2] is None:
        pytest.skip("pyppmd is not installed")
    assert found[2] == pytest.approx(ppmd, abs=0.001)


def test_each_document_is_alone() -> None:
    """A copy costs as much as the first: nothing is learnt from one document for another."""
    text = b"To be, or not to be, that is the question. " * 3
    assert bits_per_byte(text, text) == bits_per_byte(text)


def test_all_of_them_are_counted() -> None:
    scores = list(score_compressors([Document("a", b"x" * 100), Document("b", b"y" * 300)]))
    assert [score.name for score in scores] == ["xz -9e", "bzip2 -9", "PPMd, order 6, 16 MB"]
    for score in scores[:2]:
        assert score.compressed_bytes is not None
        assert score.bits_per_byte == 8 * score.compressed_bytes / 400


def test_without_pyppmd(monkeypatch: pytest.MonkeyPatch) -> None:
    """The row is there, without a figure."""
    monkeypatch.setattr("retnet.eval.compressors.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "pyppmd", None)
    found = bits_per_byte(b"some text")
    assert found[2] is None
    assert None not in found[:2]
