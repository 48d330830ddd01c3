"""What is on the disk comes back bit for bit, or not at all; what was there before is not lost."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from retnet.checkpoint import (
    CONFIG_FILE,
    INDEX_FILE,
    WEIGHTS_FILE,
    CheckpointError,
    files,
    load_checkpoint,
    read_config,
    save_checkpoint,
)
from retnet.config import ModelConfig
from retnet.data.tokenizer import ByteTokenizer, load_tokenizer
from retnet.model import RetNet
from tests.disk import full_disk


def make_model(seed: int = 0, **changes: Any) -> RetNet:
    base: dict[str, Any] = {"d_model": 16, "num_layers": 2, "num_heads": 2}
    config = ModelConfig(**{**base, **changes})
    return RetNet(config, generator=torch.Generator().manual_seed(seed)).eval()


def drawn_tokens(*shape: int) -> Tensor:
    return torch.randint(259, shape, generator=torch.Generator().manual_seed(0))


def assert_same_model(actual: RetNet, expected: RetNet) -> None:
    assert actual.config == expected.config
    mine, theirs = actual.state_dict(), expected.state_dict()
    assert list(mine) == list(theirs)
    for name, tensor in theirs.items():
        assert mine[name].dtype == tensor.dtype
        assert torch.equal(mine[name], tensor), name


def files_in(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


# Models


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_embeddings": False, "bias": True, "head_norm_affine": True},
        {"decay": (0.5, 1.0), "score_norm": "paper", "feed_forward": "swiglu", "norm": "rmsnorm"},
        {"feed_forward": "geglu", "ffn_norm": True, "embedding_norm": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_round_trip(tmp_path: Path, dtype: torch.dtype, changes: dict[str, Any]) -> None:
    model = make_model(**changes).to(dtype)
    save_checkpoint(tmp_path / "new" / "run", model, ByteTokenizer())
    loaded = load_checkpoint(str(tmp_path / "new" / "run"))
    assert_same_model(loaded, model)
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert torch.equal(loaded(drawn_tokens(2, 9))[0], model(drawn_tokens(2, 9))[0])
    assert load_tokenizer(tmp_path / "new" / "run").encode("a") == ByteTokenizer().encode("a")


def test_files(tmp_path: Path) -> None:
    """Those that are promised, and nothing left aside."""
    save_checkpoint(tmp_path, make_model())
    assert set(files_in(tmp_path)) == {CONFIG_FILE, WEIGHTS_FILE}
    save_checkpoint(tmp_path, make_model(), ByteTokenizer())
    names = {CONFIG_FILE, WEIGHTS_FILE, "tokenizer.json", "tokenizer_config.json"}
    assert set(files_in(tmp_path)) == names
    config = json.loads((tmp_path / CONFIG_FILE).read_text())
    assert config["d_model"] == 16
    assert config["model_type"] == "retentive"
    with safe_open(tmp_path / WEIGHTS_FILE, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_dtype_on_loading(tmp_path: Path) -> None:
    model = make_model()
    save_checkpoint(tmp_path, model)
    half = load_checkpoint(tmp_path, dtype=torch.bfloat16)
    assert_same_model(half, model.to(torch.bfloat16))


def test_loaded_weights_may_be_trained_and_saved_over_their_file(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, make_model())
    loaded = load_checkpoint(tmp_path)
    loaded(drawn_tokens(1, 5))[0].sum().backward()
    torch.optim.SGD(loaded.parameters(), lr=0.1).step()
    save_checkpoint(tmp_path, loaded)
    again = load_checkpoint(tmp_path)
    assert_same_model(again, loaded)
    assert not torch.equal(
        again.backbone.embed_tokens.weight, make_model().backbone.embed_tokens.weight
    )


def test_who_is_reading_the_older_checkpoint_may_go_on(tmp_path: Path) -> None:
    """Files are replaced, not written over: there is no moment at which one is half new."""
    save_checkpoint(tmp_path, make_model())
    before = files_in(tmp_path)
    with (tmp_path / WEIGHTS_FILE).open("rb") as weights, (tmp_path / CONFIG_FILE).open() as config:
        save_checkpoint(tmp_path, make_model(1, dropout=0.5))
        assert weights.read() == before[WEIGHTS_FILE]
        assert config.read().encode() == before[CONFIG_FILE]
    assert files_in(tmp_path) != before


def test_another_model_takes_the_place(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, make_model())
    other = make_model(1, num_layers=3)
    save_checkpoint(tmp_path, other)
    assert_same_model(load_checkpoint(tmp_path), other)


@pytest.mark.parametrize("num_bytes", [0, 300, 5_000, 30_000])
@pytest.mark.parametrize("tokenizer", [None, ByteTokenizer()], ids=["model", "with tokenizer"])
@pytest.mark.parametrize("changes", [{}, {"num_layers": 3, "num_heads": 4}], ids=str)
def test_a_full_disk_leaves_the_older_checkpoint_whole(
    tmp_path: Path, changes: dict[str, Any], tokenizer: ByteTokenizer | None, num_bytes: int
) -> None:
    """Config and weights are of one save, old or new: where one can't be written, neither is."""
    older = make_model()
    save_checkpoint(tmp_path, older, ByteTokenizer())
    before = files_in(tmp_path)
    with full_disk(num_bytes), pytest.raises(CheckpointError, match="could not save to"):
        save_checkpoint(tmp_path, make_model(1, **changes), tokenizer)
    assert files_in(tmp_path) == before
    assert_same_model(load_checkpoint(tmp_path), older)


def test_a_full_disk_leaves_no_half_checkpoint(tmp_path: Path) -> None:
    """Where there was none, there is none that could be taken for one."""
    with full_disk(30_000), pytest.raises(CheckpointError, match="could not save to"):
        save_checkpoint(tmp_path / "new", make_model())
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "new")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_can_not_be_written(tmp_path: Path) -> None:
    older = make_model()
    save_checkpoint(tmp_path, older)
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(CheckpointError, match="could not save to"):
            save_checkpoint(tmp_path, make_model(1))
    finally:
        tmp_path.chmod(0o700)
    assert_same_model(load_checkpoint(tmp_path), older)


def test_a_file_where_the_directory_should_be(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a diary")
    for directory in (tmp_path / "run", tmp_path / "run" / "deeper"):
        with pytest.raises(CheckpointError, match="could not save to"):
            save_checkpoint(directory, make_model())
    assert (tmp_path / "run").read_text() == "a diary"


def change_config(**changes: Any) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        path = directory / CONFIG_FILE
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def write_config(data: bytes) -> Callable[[Path], None]:
    return lambda directory: (directory / CONFIG_FILE).write_bytes(data) and None


def change_weights(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    def rewrite(directory: Path) -> None:
        weights = load_file(directory / WEIGHTS_FILE)
        change(weights)
        save_file(weights, directory / WEIGHTS_FILE)

    return rewrite


def truncate_weights(num_bytes: int) -> Callable[[Path], None]:
    return lambda directory: os.truncate(directory / WEIGHTS_FILE, num_bytes)


def write_index(directory: Path, weight_map: dict[str, str]) -> None:
    (directory / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))


def without_prefix(weights: dict[str, Tensor]) -> None:
    for name in list(weights):
        weights[name.removeprefix("backbone.")] = weights.pop(name)


HEAD = "lm_head.weight"
NORM, WIDE = "backbone.norm.weight", torch.ones(17)
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda d: (d / CONFIG_FILE).unlink(), "holds no checkpoint: .*no config.json"),
    "no weights": (lambda d: (d / WEIGHTS_FILE).unlink(), "no file .*model.safetensors"),
    "weights cut short": (truncate_weights(20_000), "damaged or not safetensors"),
    "weights cut within the header": (truncate_weights(100), "damaged or not safetensors"),
    "empty weights": (truncate_weights(0), "damaged or not safetensors"),
    "weights that are text": (
        lambda d: (d / WEIGHTS_FILE).write_text("version https://git-lfs.github.com/spec/v1\n"),
        "damaged or not safetensors",
    ),
    "another project's model": (
        change_config(model_type="llama"),
        "not of this project: expected model_type 'retentive'",
    ),
    "config that is no object": (write_config(b"[]"), "expected fields by name"),
    "config of nothing": (write_config(b"{}"), "expected model_type"),
    "config that is no JSON": (write_config(b"{"), "can't be read as JSON"),
    "empty config": (write_config(b""), "can't be read as JSON"),
    "config that is no text": (write_config(b"\xff\xfe"), "can't be read as JSON"),
    "an unknown setting": (
        change_config(num_head=3),
        "config.json: unknown model setting 'num_head'; did you mean 'num_heads'",
    ),
    "a bad value": (change_config(score_norm="all"), "config.json: score_norm must be one of"),
    "a value of another type": (change_config(dropout="0.1"), "config.json: dropout must be"),
    "other sizes": (
        change_config(d_model=32),
        r"the weights of .* and its config.json disagree .*expected \[",
    ),
    "more layers": (change_config(num_layers=3), r"disagree .*layers.2.*is missing"),
    "fewer layers": (change_config(num_layers=1), r"disagree .*layers.1.*is not of this model"),
    "a missing tensor": (
        change_weights(lambda weights: weights.pop(NORM)),
        r"disagree \(1\): backbone.norm.weight is missing",
    ),
    "a tensor too many": (
        change_weights(lambda weights: weights.update(extra=WIDE)),
        r"disagree \(1\): extra is not of this model",
    ),
    "a tensor of another shape": (
        change_weights(lambda weights: weights.update({NORM: WIDE})),
        r"disagree \(1\): backbone.norm.weight is \[17\], expected \[16\]",
    ),
    "a tensor of integers": (
        change_weights(lambda weights: weights.update({NORM: torch.ones(16).long()})),
        r"the weights of .* can't be used \(1\): backbone.norm.weight is torch.int64, expected a f",
    ),
    "weights that are not numbers": (
        change_weights(lambda weights: weights[NORM].fill_(math.nan)),
        r"the weights of .* can't be used \(1\): backbone.norm.weight holds NaN or infinity",
    ),
    "an infinite weight": (
        change_weights(lambda weights: weights[NORM].select(0, 3).fill_(-math.inf)),
        "backbone.norm.weight holds NaN or infinity",
    ),
    "a head that is not the embedding": (
        change_weights(lambda weights: weights.update({HEAD: torch.ones(259, 16)})),
        "lm_head.weight is not the embedding, and config.json says tie_embeddings",
    ),
    "no head": (
        change_config(tie_embeddings=False),
        "those of a model without its output head .* save the whole model",
    ),
    "a backbone alone": (
        change_weights(without_prefix),
        "those of a model without its output head .* save the whole model",
    ),
    "an index of nothing": (
        lambda d: (d / WEIGHTS_FILE).rename(d / "other") and write_index(d, {}),
        "disagree",
    ),
    "an index that is none": (
        lambda d: (d / WEIGHTS_FILE).rename(d / "other") and (d / INDEX_FILE).write_text("[]"),
        "is no index of shards: expected files under 'weight_map'",
    ),
    "an index of a file elsewhere": (
        lambda d: (d / WEIGHTS_FILE).rename(d / "other") and write_index(d, {NORM: "../other"}),
        "names '../other', expected a file in the same directory",
    ),
    "an index of a file that is not there": (
        lambda d: (d / WEIGHTS_FILE).rename(d / "other") and write_index(d, {NORM: "one"}),
        "there is no file .*one",
    ),
    "an index of a tensor that is not there": (
        lambda d: (d / WEIGHTS_FILE).rename(d / "other") and write_index(d, {"x": "other"}),
        "lists x, which is in none of its files",
    ),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_broken_checkpoint(tmp_path: Path, broken: str) -> None:
    """A one-line error that names the place."""
    change, message = BROKEN[broken]
    save_checkpoint(tmp_path, make_model())
    change(tmp_path)
    with pytest.raises(CheckpointError, match=message) as error:
        load_checkpoint(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere holds no checkpoint"):
        load_checkpoint(tmp_path / "nowhere")


# What others write into a directory of ours


def test_a_tied_head_that_is_stored_too(tmp_path: Path) -> None:
    model = make_model()
    save_checkpoint(tmp_path, model)
    weights = load_file(tmp_path / WEIGHTS_FILE)
    weights[HEAD] = weights["backbone.embed_tokens.weight"].clone()
    save_file(weights, tmp_path / WEIGHTS_FILE)
    assert_same_model(load_checkpoint(tmp_path), model)


def test_weights_in_several_files(tmp_path: Path) -> None:
    model = make_model()
    save_checkpoint(tmp_path, model)
    weights = load_file(tmp_path / WEIGHTS_FILE)
    (tmp_path / WEIGHTS_FILE).unlink()
    names = {name: f"model-{place % 3}.safetensors" for place, name in enumerate(weights)}
    for file in set(names.values()):
        part = {name: weights[name] for name, home in names.items() if home == file}
        save_file(part, tmp_path / file)
    write_index(tmp_path, names)
    assert_same_model(load_checkpoint(tmp_path), model)


def test_config_names_the_class_and_the_tokens(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, make_model(), ByteTokenizer())
    config = json.loads((tmp_path / CONFIG_FILE).read_text())
    assert config["architectures"] == ["RetNetForCausalLM"]
    assert [config[f"{name}_token_id"] for name in ("pad", "bos", "eos")] == [0, 1, 2]
    assert read_config(tmp_path) == make_model().config


def test_what_transformers_adds_to_a_config(tmp_path: Path) -> None:
    """Where it wrote the file, its own fields are left alone; elsewhere they are mistakes."""
    model = make_model()
    save_checkpoint(tmp_path, model)
    change_config(use_cache=True, dtype="float32", chunk_size=64)(tmp_path)
    with pytest.raises(CheckpointError, match="unknown model setting 'use_cache'"):
        load_checkpoint(tmp_path)
    change_config(transformers_version="5.23.0")(tmp_path)
    assert_same_model(load_checkpoint(tmp_path), model)


@pytest.mark.parametrize(
    ("fields", "layout"),
    [
        ({"decoder_embed_dim": 8, "decoder_retention_heads": 2}, "torchscale"),
        ({"decoder_embed_dim": 8, "decoder_retention_heads": 2, "use_glu": True}, "syncdoth"),
        ({"hidden_size": 8, "expand_k": 1, "expand_v": 2, "num_hidden_layers": 2}, "fla"),
    ],
)
def test_a_model_that_can_be_converted(tmp_path: Path, fields: dict[str, Any], layout: str) -> None:
    """The error says how."""
    save_checkpoint(tmp_path, make_model())
    (tmp_path / CONFIG_FILE).write_text(json.dumps({"model_type": "retnet", **fields}))
    with pytest.raises(CheckpointError, match=f"retnet convert --from {layout} SRC DST"):
        load_checkpoint(tmp_path)


def test_quantised_weights(tmp_path: Path) -> None:
    """Those that transformers' quantisers save."""
    save_checkpoint(tmp_path, make_model())
    path = tmp_path / CONFIG_FILE
    fields = {"transformers_version": "5.23.0", "quantization_config": {"quant_method": "torchao"}}
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    with pytest.raises(CheckpointError, match="quantised weights, which only transformers reads"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_files_have_the_mode_of_new_ones(umask: int, tmp_path: Path) -> None:
    """The weights could once be read by their owner alone: safetensors writes them so."""
    before = os.umask(umask)
    try:
        save_checkpoint(tmp_path, make_model())
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == dict.fromkeys(("config.json", "model.safetensors"), 0o666 & ~umask)


def test_memory_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch says that by a RuntimeError, under `ulimit -v`."""

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("unable to mmap 5 bytes")

    save_checkpoint(tmp_path, make_model())
    monkeypatch.setattr(files, "safe_open", fail)
    message = r"model.safetensors of [\d,]+ bytes can't be brought into memory: unable to mmap"
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path)
