"""Every example of the README and of the documentation works as pasted, one page after the other
in a folder that has what it speaks of.
"""

import gzip
import json
import shutil
import socket
from collections.abc import Iterator
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest

from retnet.cli import main
from tests.docs.page import LEFT_OUT, ROOT, SHORT, Page, blocks, shorter, statements
from tests.learnt import TEXT

PAGES = {
    str(path.relative_to(ROOT)): blocks(path)
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if path.name != "LOG.md"
}
# What the examples of a page begin with besides texts; the others begin with runs.
BEGIN_WITH = {"README.md": {"theirs"}, "docs/conversion.md": {"ours"}, "docs/data.md": set[str]()}
FOR_FLA = (
    "--model.norm rmsnorm --model.head_norm rmsnorm --model.feed_forward swiglu "
    "--model.rotary_frequencies rope --model.decay equation8"
)


@pytest.fixture(scope="session")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that examples speak of: texts, runs, another project's checkpoint."""
    folder = tmp_path_factory.mktemp("given")
    for name in ("my/texts", "data/corpus"):
        (folder / name).mkdir(parents=True)
        for number in range(40):
            (folder / name / f"{number}.txt").write_text(f"The text {number}.\n{TEXT[:600]}")
    (folder / "wiki.valid.tokens").write_text(f" = A title = \n\n{TEXT[:2000]}")
    meeting = json.dumps({"text": "Once upon a time.", "transcript": TEXT[:2000]}) + "\n"
    (folder / "meetings.jsonl").write_text(meeting)
    (folder / "more.jsonl.gz").write_bytes(gzip.compress(meeting.encode()))
    train = f"train --train.data {folder}/my/texts --model.d_model 32 --model.num_layers 1 {SHORT}"
    assert main([*train.split(), "--train.out", f"{folder}/runs/first"]) == 0
    shutil.copytree(folder / "runs/first", folder / "runs/other")
    assert main([*train.split(), *FOR_FLA.split(), "--train.out", f"{folder}/for-fla"]) == 0
    assert main(["convert", "--to", "fla", f"{folder}/for-fla", f"{folder}/theirs"]) == 0
    assert main(["convert", f"{folder}/theirs", f"{folder}/ours"]) == 0
    return folder


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder, where nobody types."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr("sys.stdin", TextIOWrapper(BytesIO()))
    yield tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, examples in PAGES.items() if examples])
@pytest.mark.usefixtures("stand_in_for_timm")
def test_examples(name: str, given: Path, here: Path, port: int) -> None:
    """An error names the page and the line."""
    if name == "docs/conversion.md":
        pytest.importorskip("fairscale")
        pytest.importorskip("torchscale")
    texts = {"my", "data", "wiki.valid.tokens", "meetings.jsonl", "more.jsonl.gz"}
    for entry in texts | BEGIN_WITH.get(name, {"runs"}):
        copy = shutil.copytree if (given / entry).is_dir() else shutil.copy
        copy(given / entry, here / entry)
    page = Page(ROOT / name, port)
    try:
        for block in PAGES[name]:
            page.run(block)
    finally:
        page.close()


def test_what_is_left_out_is_there() -> None:
    """Nothing is excused that no page has."""
    shell = [block for page in PAGES.values() for block in page if block.language == "sh"]
    lines = [line for block in shell for line in statements(block.text)]
    assert [start for start in LEFT_OUT if not any(line.startswith(start) for line in lines)] == []


def test_statements() -> None:
    shell = "one \\\n  more\n\ncat > x <<'END'\na\nEND\nlast\n"
    assert list(statements(shell)) == ["one   more", "cat > x <<'END'\na\nEND", "last"]


def test_shorter() -> None:
    assert shorter("retnet generate x  # why") == "retnet generate x  # why"
    assert shorter("retnet train --resume --train.out x") == "retnet train --resume --train.out x"
    assert (
        shorter("retnet train --train.data x  # why")
        == f"retnet train --train.data x {SHORT}  # why"
    )
    assert shorter("retnet train") == f"retnet train --train.data my/texts {SHORT}  #"
