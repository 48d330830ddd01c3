"""`retnet eval --text` with what shows how good its figure is."""

import json
import re
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from retnet.checkpoint import save_checkpoint
from retnet.cli import main
from retnet.config import preset
from retnet.data.pretrained import PretrainedTokenizer
from retnet.data.tokenizer import ByteTokenizer
from retnet.model import RetNet
from tests.learnt import TEXT, save_learnt_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_learnt_model(tmp_path_factory.mktemp("learnt"))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a long document and a short one."""
    directory = tmp_path_factory.mktemp("text")
    (directory / "a.txt").write_text(TEXT[:1000])
    (directory / "b.txt").write_text("Zürich, 1888")
    return directory


def evaluate(folder: Path, text: Path, *flags: str) -> int:
    return main(["eval", "--model", str(folder), "--text", str(text), *flags])


def report_and_output(
    folder: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], *flags: str
) -> tuple[dict[str, list[dict[str, float]]], str]:
    out = tmp_path / "out.json"
    assert evaluate(folder, text, *flags, "--out", str(out)) == 0
    return json.loads(out.read_text()), capsys.readouterr().out


def test_positions(
    folder: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second table; --out has it always."""
    flags = ("--positions", "true", "--quantize", "int8")
    report, shown = report_and_output(folder, text, tmp_path, capsys, *flags)
    assert "bits per byte by position in the document" in shown
    rows = re.findall(r"│ (\S+) +│ +(\d+) │ +([\d.]+) │ +([\d.]+) │ +([\d.]+) │", shown)
    assert [row[:2] for row in rows] == [
        ("0–63", "77"),  # 13 bytes of the short document
        ("64–127", "64"),
        ("128–255", "128"),
        ("256–511", "256"),
        ("512–1,023", "488"),
    ]
    for place, row in enumerate(rows):
        for score, bits in zip(report["scores"], row[2:], strict=True):
            assert f"{score['positions'][place]['bits_per_token']:.4f}" == bits
    for score in report["scores"]:
        assert sum(bucket["num_tokens"] for bucket in score["positions"]) == score["num_bytes"]


@pytest.fixture
def token_folder(tmp_path: Path) -> Path:
    """A model with GPT-2's kind of tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    files = tmp_path / "tokenizer"
    files.mkdir()
    tokenizer.save(str(files / "tokenizer.json"))
    (files / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
    config = preset("tiny", d_model=32, num_layers=1, vocab_size=300)
    model = RetNet(config, generator=torch.Generator().manual_seed(0))
    save_checkpoint(tmp_path / "model", model, PretrainedTokenizer(files))
    return tmp_path / "model"


def test_with_another_tokenizer(
    token_folder: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Positions are those of tokens, and all else is still by bytes."""
    flags = ("--positions", "--roundtrip")
    report, shown = report_and_output(token_folder, text, tmp_path, capsys, *flags)
    assert "bits per token by position" in shown
    score, coded = report["scores"][0], report["roundtrip"]
    num_tokens = sum(bucket["num_tokens"] for bucket in score["positions"])
    assert num_tokens == coded["num_tokens"] < score["num_bytes"] == coded["num_bytes"] == 1013
    bits = sum(each["num_tokens"] * each["bits_per_token"] for each in score["positions"])
    assert bits == pytest.approx(score["bits_per_byte"] * 1013)
    assert coded["identical"]
    assert coded["difference_percent"] == pytest.approx(0, abs=100 * 10 / bits)


def test_without_flags_there_is_one_table(
    folder: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(folder, text, "--positions", "false") == 0
    shown = capsys.readouterr().out
    assert shown.count("┏") == 1
    *_, counts, protocol = shown.splitlines()
    assert counts.endswith("2 documents, 1,013 bytes")
    assert protocol == "each document was read from bos to its end, the state carried along"


def test_compressors(
    folder: Path,
    text: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Beside the model; where PPMd's package is missing, its row says what to install."""
    monkeypatch.setattr("retnet.eval.compressors.find_spec", lambda name: None)
    report, shown = report_and_output(folder, text, tmp_path, capsys, "--compressors")
    model, xz, bzip2, ppmd = re.findall(r"│ (\S.*?) +│ +(\S.*?) │$", shown, re.MULTILINE)[-4:]
    assert model == ("this model, fp32", f"{report['scores'][0]['bits_per_byte']:.4f}")
    for row, score in zip((xz, bzip2), report["compressors"], strict=False):
        assert row == (score["name"], f"{score['bits_per_byte']:.4f}")
    assert ppmd == ("PPMd, order 6, 16 MB", "pip install 'retnet[compressors]'")
    assert report["compressors"][2]["bits_per_byte"] is None
    words = " ".join(shown.split())
    assert "Each document was compressed by itself; PPMd learns from the file" in words


def test_the_round_trip(
    folder: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--roundtrip", "--roundtrip_bytes", "500")
    report, shown = report_and_output(folder, text, tmp_path, capsys, *flags)
    found = report["roundtrip"]
    assert found["num_bytes"] == 500
    assert found["identical"] is True
    sizes = f"{found['coded_bytes']} bytes, 7 of them a checksum and the documents' lengths"
    assert shown.splitlines()[-6:] == [
        "The first 500 bytes with the model in fp32, token by token:",
        f"  coded       {sizes}",
        f"              {found['coded_bits_per_byte']:.4f} bits per byte without these",
        f"  stated      {found['stated_bits_per_byte']:.4f} bits per byte",
        f"  difference  {found['difference_percent']:+.3f} %",
        "decoded: identical",
    ]


def test_a_round_trip_that_fails(
    folder: Path, text: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told, to people and to programs."""
    monkeypatch.setattr("retnet.eval.round_trip.decompress", lambda *_, **__: [[3]])
    assert evaluate(folder, text, "--roundtrip", "--roundtrip_bytes", "20") == 1
    assert capsys.readouterr().out.splitlines()[-1] == "decoded: DIFFERENT"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--positions", "true"], "--positions goes with --text SOURCE"),
        (["--compressors"], "--compressors goes with --text SOURCE"),
        (["--roundtrip"], "--roundtrip goes with --text SOURCE"),
        (["--roundtrip=perhaps"], "--roundtrip must be true or false, got 'perhaps'"),
    ],
)
def test_refusals(
    flags: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "--model", str(folder), *flags]) == 2
    assert capsys.readouterr().err == f"retnet: error: {message}\n"


@pytest.mark.parametrize("num_bytes", ["0", "-3"])
def test_nothing_to_code(
    num_bytes: str, folder: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(folder, text, "--roundtrip", "--roundtrip_bytes", num_bytes) == 2
    says = f"--roundtrip_bytes must reach over a character, got {num_bytes}\n"
    assert capsys.readouterr().err.endswith(says)


def test_a_model_that_no_decoder_takes(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is scored."""
    model = RetNet(preset("tiny", d_model=32, num_layers=1, mixer="attention"))
    save_checkpoint(tmp_path, model, ByteTokenizer())
    assert evaluate(tmp_path, text, "--roundtrip") == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("retnet: error: --roundtrip needs a model whose mixer is retention")
    assert not shown.out


def test_windows(
    folder: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The protocol is told; a window that holds all there is reads it as a document is read."""
    bits = []
    for window in (8, 2048):
        flags = ("--window", str(window), "--out", str(tmp_path / f"{window}.json"))
        assert evaluate(folder, text, *flags) == 0
        assert f"in windows of {window:,} tokens" in capsys.readouterr().out
        report = json.loads((tmp_path / f"{window}.json").read_text())
        assert report["settings"]["window"] == window
        bits.append(report["scores"][0]["bits_per_byte"])
    whole, _ = report_and_output(folder, text, tmp_path, capsys)
    assert bits[1] == pytest.approx(whole["scores"][0]["bits_per_byte"], abs=1e-6) != bits[0]


def test_perplexities(
    folder: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All three are the same nats, by bytes and by words."""
    report, shown = report_and_output(folder, text, tmp_path, capsys)
    score, words = report["scores"][0], len(TEXT[:1000].split()) + TEXT[:1000].count("\n") + 2
    assert score["token_perplexity"] == pytest.approx(2 ** score["bits_per_byte"])
    assert score["word_perplexity"] == pytest.approx(2 ** (score["bits_per_byte"] * 1013 / words))
    assert f"a word (words and ends of lines, {words:,})" in shown


def test_json_lines(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every line is a document, and its text in the field that is named."""
    lines = [json.dumps({"body": TEXT[start : start + 100]}) for start in (0, 100)]
    (tmp_path / "text.jsonl").write_text("\n".join(lines) + "\n")
    assert evaluate(folder, tmp_path / "text.jsonl", "--text_field", "body") == 0
    assert "2 documents, 200 bytes" in capsys.readouterr().out


def test_divided_text(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line that matches begins a document."""
    (tmp_path / "text.txt").write_text("= One =\nfirst\n= Two =\nsecond\n")
    assert evaluate(folder, tmp_path / "text.txt", "--split_on", "^= .* =$") == 0
    assert "2 documents, 29 bytes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--stride", "4"], "--stride is of windows; pass --window too"),
        (["--window", "0"], "--window must be at least 1, got 0"),
        (["--window", "8", "--stride", "9"], "--stride must be from 1 to --window, 8, got 9"),
        (
            ["--window", "8", "--positions", "true"],
            "--positions are those of whole documents; leave out --window",
        ),
    ],
)
def test_wrong_windows(
    folder: Path, text: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(folder, text, *flags) == 2
    assert capsys.readouterr().err == f"retnet: error: {message}\n"
