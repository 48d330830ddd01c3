"""Files of tasks: what is read from them, which split they are, what is said of wrong ones."""

import bz2
import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from retnet.eval.local_data import LocalDataError, Row, read_rows, split_files, task_folders

HELLASWAG = """\
Canoeing: A man sits. He is in a canoe. the man, who is Tom
2
paddles.
sleeps.
sings: a song.
"eats".
Home and Garden: How to sit. Find a chair.
0
Sit on it.
Stand.
Run.
Fly.
"""


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def lines_of(rows: Sequence[Row]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


# --- what is in a file


@pytest.mark.parametrize("end", ["\n", "\n\n", ""])
def test_json_lines(end: str, tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", '{"text": "naïve ✓"}\n{"text": "b"}' + end)
    assert read_rows(path, "lambada_openai") == [{"text": "naïve ✓"}, {"text": "b"}]


def test_json_is_a_list_or_lines(tmp_path: Path) -> None:
    rows = [{"a": 1, "b": ["x"]}, {"a": 2, "b": []}]
    assert read_rows(write(tmp_path / "list.json", json.dumps(rows, indent=1)), "any") == rows
    assert read_rows(write(tmp_path / "lines.json", lines_of(rows)), "any") == rows


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"a": "1", "b": ["x"]}, {"a": "2024-01-01", "b": []}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "test.parquet")
    assert read_rows(tmp_path / "test.parquet", "any") == rows


@pytest.mark.parametrize("compress", [bz2.compress, gzip.compress, bytes])
def test_hellaswag_as_text(compress: object, tmp_path: Path) -> None:
    """ctx_b, which the prompt begins with a capital, is the sentence that the endings go on."""
    assert callable(compress)
    suffix = {"bz2": ".bz2", "gzip": ".gz"}.get(compress.__module__, "")
    path = tmp_path / f"val.txt{suffix}"
    path.write_bytes(compress(HELLASWAG.encode()))
    assert read_rows(path, "hellaswag") == [
        {
            "activity_label": "Canoeing",
            "ctx_a": "A man sits. He is in a canoe.",
            "ctx_b": "the man, who is Tom",
            "endings": ["paddles.", "sleeps.", "sings: a song.", '"eats".'],
            "label": "2",
        },
        {
            "activity_label": "Home and Garden",
            "ctx_a": "How to sit. Find a chair.",
            "ctx_b": "",
            "endings": ["Sit on it.", "Stand.", "Run.", "Fly."],
            "label": "0",
        },
    ]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_piqa_with_labels_beside_it(suffix: str, tmp_path: Path) -> None:
    rows = [{"goal": "g", "sol1": "a", "sol2": "b"}, {"goal": "h", "sol1": "c", "sol2": "d"}]
    data = lines_of(rows).encode()
    (tmp_path / f"valid.jsonl{suffix}").write_bytes(gzip.compress(data) if suffix else data)
    with pytest.raises(LocalDataError, match=r"item 1: no label; .* or in valid-labels.lst beside"):
        read_rows(tmp_path / f"valid.jsonl{suffix}", "piqa")
    write(tmp_path / "valid-labels.lst", "1\n0\n")
    labelled = read_rows(tmp_path / f"valid.jsonl{suffix}", "piqa")
    assert [row["label"] for row in labelled] == [1, 0]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("x.jsonl", "", "x.jsonl is empty; expected items of hellaswag"),
        ("x.jsonl", "\n\n", "x.jsonl is empty"),
        ("x.json", "[]", "x.json is empty"),
        ("x.txt", "", "x.txt is empty"),
        ("x.jsonl", '{"a": 1}\n{"a": \n', "x.jsonl, line 2: not JSON"),
        ("x.jsonl", '{"a": 1}\n\n{"a": 2}\n', "x.jsonl, line 2: not JSON"),
        ("x.jsonl", "[1, 2]\n", r"x.jsonl, line 1: expected a JSON object, got '\[1, 2\]'"),
        ("x.jsonl", '{"a": 1, "b": 2}\n{"a": 1}\n', "item 2: expected the columns a, b .* b is"),
        ("x.json", "[{]", "x.json: not JSON"),
        ("x.json", "[1]", "x.json, line 1: expected a JSON object, got '1'"),
        ("x.txt", HELLASWAG + "Extra: line\n", "x.txt, line 13: the file ends within an item"),
        ("x.txt", HELLASWAG.replace("\n0\n", "\n4\n"), "line 8: expected the number .* got '4'"),
        ("x.txt", HELLASWAG.replace("Home and Garden:", ""), "line 7: expected 'activity: context"),
        ("x.parquet", "PAR1", "x.parquet can't be read as Parquet"),
        ("x.jsonl.gz", "no gzip", "cannot read .*x.jsonl.gz: Not a gzipped file"),
    ],
)
def test_what_is_wrong_with_a_file(name: str, text: str, says: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, text)
    with pytest.raises(LocalDataError, match=says) as error:
        read_rows(path, "hellaswag")
    assert str(path) in str(error.value)


def test_other_bytes(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b'{"a": "\xe9"}')
    with pytest.raises(LocalDataError, match=r"x.jsonl is not UTF-8"):
        read_rows(tmp_path / "x.jsonl", "any")


@pytest.mark.parametrize(
    ("labels", "says"),
    [("1\n", "valid.jsonl has 2 items, and 1 labels"), ("1\n2\n", "valid-labels.lst, line 2")],
)
def test_labels_that_do_not_do(labels: str, says: str, tmp_path: Path) -> None:
    path = write(tmp_path / "valid.jsonl", '{"goal": "g"}\n{"goal": "h"}\n')
    write(tmp_path / "valid-labels.lst", labels)
    with pytest.raises(LocalDataError, match=says):
        read_rows(path, "piqa")


@pytest.mark.parametrize(
    ("task", "label", "says"),
    [
        ("piqa", -1, "the label is -1; expected 0 or 1"),
        ("piqa", 7, "the label is 7"),
        ("piqa", "1", "the label is '1'"),
        ("piqa", None, "no label"),
        ("hellaswag", "", "the label is ''; expected the number of the right ending, 0 to 3"),
        ("hellaswag", -1, "the label is -1"),
        ("hellaswag", None, "no label"),
    ],
)
def test_labels_out_of_range(task: str, label: object, says: str, tmp_path: Path) -> None:
    """lm_eval counted such items as wrong answers, or failed without a word about where."""
    path = write(tmp_path / "validation.jsonl", lines_of([{"label": 1}, {"label": label}]))
    with pytest.raises(LocalDataError, match=f"validation.jsonl, item 2: {says}"):
        read_rows(path, task)


# --- which file is which


def test_folder_of_a_task(tmp_path: Path) -> None:
    def folder(task: str) -> Path:
        return task_folders(tmp_path, [task])[task]

    (tmp_path / "lambada").mkdir()
    assert folder("lambada_openai") == tmp_path / "lambada"
    (tmp_path / "lambada_openai").mkdir()
    assert folder("lambada_openai") == tmp_path / "lambada_openai"
    with pytest.raises(LocalDataError, match="has no folder 'lambada_standard'"):
        folder("lambada_standard")
    with pytest.raises(LocalDataError, match=r"task_data .*nowhere' is not a folder"):
        task_folders(tmp_path / "nowhere", ["piqa"])


def test_all_missing_folders_at_once(tmp_path: Path) -> None:
    """They were named one by one, a call each."""
    (tmp_path / "b").mkdir()
    with pytest.raises(LocalDataError, match="has no folders 'a', 'c'; put"):
        task_folders(tmp_path, ["a", "b", "c"])


@pytest.mark.parametrize(
    ("names", "files"),
    [
        (["data.jsonl"], {"validation": ["data.jsonl"]}),
        (["winogrande_val.jsonl"], {"validation": ["winogrande_val.jsonl"]}),
        (["dev.json", "train.parquet"], {"validation": ["dev.json"], "train": ["train.parquet"]}),
        (["validation.jsonl", "test.jsonl"], {"validation": ["validation.jsonl"]}),
        (
            ["valid.jsonl", "valid-labels.lst", "README.md", ".x.jsonl"],
            {"validation": ["valid.jsonl"]},
        ),
        (
            ["validation-00000-of-00002.parquet", "validation-00001-of-00002.parquet"],
            {
                "validation": [
                    "validation-00000-of-00002.parquet",
                    "validation-00001-of-00002.parquet",
                ]
            },
        ),
    ],
)
def test_files_of_splits(names: list[str], files: dict[str, list[str]], tmp_path: Path) -> None:
    for name in names:
        write(tmp_path / name, "")
    found = split_files(tmp_path, "piqa", ("validation", "train"), "validation")
    assert {
        split: [path.name for path in paths] for split, paths in found.items() if paths
    } == files
    assert found.keys() == {"validation", "train"}


def test_a_split_of_another_name(tmp_path: Path) -> None:
    """The task's own names come first; "dev" is not "validation" where it has both."""
    for name in ("dev.jsonl", "validation.jsonl", "validation_other.jsonl"):
        write(tmp_path / name, "")
    splits = ("validation", "dev", "validation_other")
    found = split_files(tmp_path, "any", splits, "validation")
    assert {split: [path.stem for path in paths] for split, paths in found.items()} == {
        split: [split] for split in splits
    }


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ([], "has no file of the split 'validation'"),
        (["test.jsonl"], "has no file of the split 'validation', on which piqa is evaluated"),
        (["one.jsonl", "two.jsonl"], "one.jsonl: which split is it"),
        (["notes.txt"], "has no file of the split"),
    ],
)
def test_splits_that_are_not_there(names: list[str], says: str, tmp_path: Path) -> None:
    for name in names:
        write(tmp_path / name, "")
    with pytest.raises(LocalDataError, match=says):
        split_files(tmp_path, "piqa", ("validation", "train"), "validation")


# --- the data sets themselves


@pytest.mark.parametrize(
    ("task", "split", "num_items", "columns"),
    [
        ("lambada_openai", "test", 5153, {"text"}),
        (
            "hellaswag",
            "validation",
            10_042,
            {"activity_label", "ctx_a", "ctx_b", "endings", "label"},
        ),
        ("piqa", "validation", 1838, {"goal", "sol1", "sol2", "label"}),
        ("winogrande", "validation", 1267, {"sentence", "option1", "option2", "answer"}),
    ],
)
def test_published_files(
    task: str, split: str, num_items: int, columns: set[str], data_dir: Path
) -> None:
    folder = task_folders(data_dir, [task])[task]
    ((path,),) = split_files(folder, task, (split,), split).values()
    rows = read_rows(path, task)
    assert len(rows) == num_items
    assert rows[0].keys() == columns
