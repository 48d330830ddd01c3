"""`retnet convert`: what it says, and that what it wrote can be written with."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from retnet.checkpoint import load_checkpoint, save_checkpoint
from retnet.cli import main
from retnet.config import ModelConfig
from retnet.data.tokenizer import ByteTokenizer
from retnet.model import RetNet


def make_ours(directory: Path, **changes: Any) -> Path:
    """A checkpoint that can be told in torchscale's terms."""
    settings: dict[str, Any] = {
        "d_model": 16,
        "num_layers": 1,
        "num_heads": 2,
        "decay": "equation8",
        "score_norm": "decay",
        "head_norm": "rmsnorm",
        "norm": "rmsnorm",
        "feed_forward": "swiglu",
        "tie_embeddings": False,
    }
    config = ModelConfig(**settings | changes)
    model = RetNet(config, generator=torch.Generator().manual_seed(0))
    save_checkpoint(directory, model, ByteTokenizer())
    return directory


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["convert", *arguments]) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(r"retnet: error: [^\n]+\n", error)
    return error


def test_there_and_back(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_ours(here / "ours")
    assert main(["convert", "--to", "torchscale", "ours", "theirs"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "theirs is for torchscale: 1 layers, width 16, 2 heads" in out
    assert "Exact: the same function as torchscale's recurrent form" in out

    assert main(["convert", "theirs", "out of it"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert (
        "theirs is torchscale's (version 2): 1 layers, width 16, 2 heads with keys of 8 and values"
        in out
    )
    assert "parameters, float32" in out
    assert "recurrent form (a head's output over sqrt(Z_n)) with epsilon 1e-05" in out
    assert "retnet generate \"...\" --model 'out of it'" in out
    mine, theirs = (
        load_file(path / "model.safetensors") for path in (here / "ours", here / "out of it")
    )
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert main(["generate", "a", "--model", "out of it", "--max_tokens", "3"]) == 0


def test_flags_reach_the_conversion(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_ours(here / "ours")
    main(["convert", "--to", "torchscale", "ours", "theirs"])
    weights = load_file(here / "theirs" / "model.safetensors")
    (here / "theirs" / "model.safetensors").unlink()
    (here / "theirs" / "config.json").rename(here / "fields.json")
    torch.save(weights, here / "theirs" / "weights.pt")
    arguments = ["theirs/weights.pt", "new", "--fields", "fields.json"]
    assert "pass --allow_pickle" in refusal(capsys, *arguments)
    arguments += ["--allow-pickle", "--from", "torchscale", "--score_norm", "paper"]
    assert main(["convert", *arguments, "--head_norm_eps", "1e-4"]) == 0
    assert "parallel form up to 0.3.0" in " ".join(capsys.readouterr().out.split())
    config = load_checkpoint(here / "new").config
    assert (config.score_norm, config.head_norm_eps) == ("paper", 1e-4)


def test_flags_that_do_not_go_with_it(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_ours(here / "ours", score_norm="none", rotary_frequencies="rope", rotary_pairing="halves")
    assert main(["convert", "--to", "fla", "ours", "theirs"]) == 0
    error = refusal(capsys, "theirs", "new", "--score_norm", "paper")
    assert "--score_norm is for torchscale and syncdoth; fla divides by nothing" in error
    error = refusal(capsys, "theirs", "new", "--from", "torchscale")
    assert "theirs is fla's by its fields and names, not torchscale's" in error
    assert main(["convert", "--from", "fla", "theirs", "new"]) == 0
    assert "theirs is fla's: 1 layers" in capsys.readouterr().out


def test_writing_with_another_tokenizer(
    here: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """One that knows neither a beginning nor an end: it writes, but not from nothing."""
    make_ours(here / "ours")
    main(["convert", "--to", "torchscale", "ours", "theirs"])
    vocabulary = {"▁": 0, **{f"<0x{byte:02X}>": byte + 1 for byte in range(256)}}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    tokenizer.save(str(here / "theirs" / "tokenizer.json"))
    (here / "theirs" / "tokenizer_config.json").unlink()
    assert main(["convert", "theirs", "new"]) == 0
    capfdbinary.readouterr()
    arguments = ["--model", "new", "--max_tokens", "20", "--seed", "1"]
    assert main(["generate", "one two", *arguments, "--echo"]) == 0
    assert capfdbinary.readouterr().out.startswith(b"one two")
    assert main(["generate", *arguments]) == 2
    assert b"prompt must not be empty" in capfdbinary.readouterr().err


def test_a_tokenizer_of_another_model(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One that came later than the conversion."""
    make_ours(here / "ours", vocab_size=100)
    assert main(["generate", "a", "--model", "ours"]) == 2
    assert "has 259 ids and the model a vocabulary of 100" in capsys.readouterr().err


def test_a_tokenizer_of_a_kind_that_is_not_read(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was copied, and `retnet generate` recommended, which then refused it."""
    make_ours(here / "ours")
    main(["convert", "--to", "torchscale", "ours", "theirs"])
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.save(str(here / "theirs" / "tokenizer.json"))
    capsys.readouterr()
    assert main(["convert", "theirs", "new"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "can't write with its tokenizer: new/tokenizer.json decodes by WordPiece; only" in out
    assert "Write with it" not in out


def test_without_a_tokenizer(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_ours(here / "ours")
    main(["convert", "--to", "torchscale", "ours", "theirs"])
    (here / "theirs" / "tokenizer.json").unlink()
    assert main(["convert", "theirs", "new"]) == 0
    assert "There is no tokenizer.json" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "name what to convert and where to: retnet convert SRC DST"),
        (["ours"], "name what to convert and where to"),
        (["--from", "retnet", "ours", "new"], "--from must be one of torchscale, syncdoth, fla"),
        (["--to", "syncdoth", "ours", "new"], "--to must be one of torchscale, fla, got"),
        (["--from", "fla", "--to", "fla", "ours", "new"], "convert in two steps"),
        (["--to", "fla", "--fields", "x", "ours", "new"], "--fields is for checkpoints of others"),
        (["--to", "fla", "ours", "new"], "fla can't express score_norm='decay', only 'none'"),
        (["--to", "torchscale", "nowhere", "new"], "nowhere holds no checkpoint"),
        (["--to", "torchscale", "ours", "ours"], "ours is there already"),
        (["nowhere", "new"], "there is no nowhere"),
        (["ours", "new"], "is a checkpoint of retnet already; --to torchscale or fla"),
        (["ours/config.json", "new"], "is no file of weights by its name"),
        (["--score_norm", "none", "ours", "new"], "--score_norm must be one of decay, paper"),
    ],
)
def test_wrong_call(
    arguments: list[str], says: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_ours(here / "ours")
    assert says in refusal(capsys, *arguments)
    assert [path.name for path in here.iterdir()] == ["ours"]


@pytest.mark.parametrize("command", ["generate", "inspect"])
def test_the_way_is_shown(command: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Who passes another project's checkpoint is told what to do with it."""
    make_ours(here / "ours")
    main(["convert", "--to", "torchscale", "ours", "theirs"])
    capsys.readouterr()
    assert main([command, "--model", "theirs"]) == 2
    assert "retnet convert --from torchscale SRC DST" in capsys.readouterr().err


def test_weights_that_are_not_numbers(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_ours(here / "ours")
    main(["convert", "--to", "torchscale", "ours", "theirs"])
    weights = load_file(here / "theirs" / "model.safetensors")
    weights["layer_norm.weight"].fill_(torch.nan)
    save_file(weights, here / "theirs" / "model.safetensors")
    assert "layer_norm.weight holds NaN or infinity" in refusal(capsys, "theirs", "new")
    assert json.loads((here / "theirs" / "config.json").read_text())["decoder_layers"] == 1
    assert not (here / "new").exists()
