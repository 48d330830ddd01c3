"""Directories in, directories out: what is found and refused, and that nothing is left half."""

import argparse
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from retnet.checkpoint import CheckpointError, convert, load_checkpoint, save_checkpoint
from retnet.checkpoint.convert import export_checkpoint, import_checkpoint
from retnet.config import ModelConfig
from retnet.data.tokenizer import ByteTokenizer
from retnet.model import RetNet

TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
OURS: dict[str, Any] = {
    "d_model": 16,
    "num_layers": 2,
    "num_heads": 2,
    "decay": "equation8",
    "head_norm": "rmsnorm",
    "norm": "rmsnorm",
    "tie_embeddings": False,
}
AS_TORCHSCALE = {**OURS, "score_norm": "decay", "feed_forward": "geglu"}
AS_FLA = {
    **OURS,
    "feed_forward": "swiglu",
    "rotary_frequencies": "rope",
    "rotary_pairing": "halves",
    "head_norm_affine": True,
}
SETTINGS = {"torchscale": AS_TORCHSCALE, "fla": AS_FLA}


def make_model(layout: str) -> RetNet:
    config = ModelConfig(**SETTINGS["fla" if layout == "fla" else "torchscale"])
    return RetNet(config, generator=torch.Generator().manual_seed(0)).eval()


def make_checkpoint(layout: str, directory: Path) -> Path:
    """A checkpoint of another project, made of one of ours; checked elsewhere against theirs."""
    ours = directory.with_name(f"{directory.name}-ours")
    save_checkpoint(ours, make_model(layout), ByteTokenizer())
    export_checkpoint(ours, directory, layout="fla" if layout == "fla" else "torchscale")
    if layout == "syncdoth":
        change_fields(directory, forward_impl="parallel", use_glu=True, model_type="retnet")
        weights = load_file(directory / "model.safetensors")
        names = {name: f"model.{name}" for name in weights}
        names["output_projection.weight"] = "lm_head.weight"
        renamed = {names[name]: tensor for name, tensor in weights.items()}
        save_file(renamed, directory / "model.safetensors")
    return directory


def change_fields(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def as_pickle(source: Path, target: Path, content: Callable[[Any], Any] = lambda x: x) -> Path:
    """The weights of a directory as a pickle instead, at another path."""
    weights = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    torch.save(content(weights), target)
    return target


def assert_same_function(directory: Path, layout: str) -> None:
    expected = make_model(layout)
    loaded = load_checkpoint(directory)
    assert loaded.config.to_dict() == expected.config.to_dict()
    assert torch.equal(loaded(TOKENS)[0], expected(TOKENS)[0])


def snapshot(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "new" / "out"


# What is found


@pytest.mark.parametrize("layout", ["torchscale", "syncdoth", "fla"])
@pytest.mark.parametrize("given", [False, True])
def test_directory(layout: Any, given: bool, tmp_path: Path, out: Path) -> None:
    source = make_checkpoint(layout, tmp_path / "theirs")
    before = snapshot(source)
    done = import_checkpoint(source, out, layout=layout if given else None)
    assert_same_function(out, layout)
    assert done.layout == layout
    assert done.num_parameters == sum(x.numel() for x in make_model(layout).parameters())
    assert done.dtype == "float32"
    assert set(done.files) == {"tokenizer.json", "tokenizer_config.json"}
    assert layout in done.exactness
    assert "1e-05" in done.exactness
    config = json.loads((out / "config.json").read_text())
    assert [config[f"{name}_token_id"] for name in ("pad", "bos", "eos")] == [0, 1, 2]
    assert sorted(path.name for path in out.parent.iterdir()) == ["out"]
    assert snapshot(source) == before


def test_model_type_counts_for_nothing(tmp_path: Path, out: Path) -> None:
    source = make_checkpoint("fla", tmp_path / "theirs")
    change_fields(source, model_type="llama")
    assert import_checkpoint(source, out).layout == "fla"


@pytest.mark.parametrize("layout", ["torchscale", "fla"])
def test_round_trip(layout: Any, tmp_path: Path, out: Path) -> None:
    source = make_checkpoint(layout, tmp_path / "theirs")
    import_checkpoint(source, tmp_path / "ours")
    export_checkpoint(tmp_path / "ours", out, layout=layout)
    for mine, theirs in zip(sorted(out.iterdir()), sorted(source.iterdir()), strict=True):
        if mine.suffix == ".safetensors":
            written, read = load_file(mine), load_file(theirs)
            assert written.keys() == read.keys()
            assert all(torch.equal(written[name], read[name]) for name in read)
        else:
            assert mine.read_bytes() == theirs.read_bytes()


def test_dtype_is_kept(tmp_path: Path, out: Path) -> None:
    source = make_checkpoint("fla", tmp_path / "theirs")
    weights = load_file(source / "model.safetensors")
    half = {name: tensor.bfloat16() for name, tensor in weights.items()}
    save_file(half, source / "model.safetensors")
    assert import_checkpoint(source, out).dtype == "bfloat16"
    assert next(load_checkpoint(out).parameters()).dtype == torch.bfloat16


def test_form_and_epsilon(tmp_path: Path, out: Path) -> None:
    source = make_checkpoint("torchscale", tmp_path / "theirs")
    done = import_checkpoint(source, out, score_norm="paper", head_norm_eps=1e-4)
    assert (done.config.score_norm, done.config.head_norm_eps) == ("paper", 1e-4)
    assert "parallel form up to 0.3.0" in done.exactness
    assert "each head 0.0001" in done.exactness


def test_shards(tmp_path: Path, out: Path) -> None:
    source = make_checkpoint("fla", tmp_path / "theirs")
    weights = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    home = {name: f"part-{len(name) % 2}.safetensors" for name in weights}
    for file in set(home.values()):
        save_file({name: weights[name] for name in weights if home[name] == file}, source / file)
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": home}))
    import_checkpoint(source, out)
    assert_same_function(out, "fla")


def test_file_with_its_fields_elsewhere(tmp_path: Path, out: Path) -> None:
    source = make_checkpoint("torchscale", tmp_path / "theirs")
    fields = (source / "config.json").rename(tmp_path / "fields.json")
    file = source / "model.safetensors"
    with pytest.raises(CheckpointError, match=r"there is no .*config.json; .* with --fields FILE"):
        import_checkpoint(file, out)
    import_checkpoint(file, out, fields_file=fields)
    assert_same_function(out, "torchscale")


def test_an_empty_directory_may_be_there(tmp_path: Path) -> None:
    source = make_checkpoint("fla", tmp_path / "theirs")
    (tmp_path / "out").mkdir()
    import_checkpoint(source, tmp_path / "out")
    assert_same_function(tmp_path / "out", "fla")


# Pickles


def test_pickle_takes_a_word(tmp_path: Path, out: Path) -> None:
    source = make_checkpoint("syncdoth", tmp_path / "theirs")
    as_pickle(source, source / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"is a pickle, .* pass --allow_pickle"):
        import_checkpoint(source, out)
    assert not out.parent.exists()
    import_checkpoint(source, out, allow_pickle=True)
    assert_same_function(out, "syncdoth")


def test_pickles_in_parts(tmp_path: Path, out: Path) -> None:
    source = make_checkpoint("syncdoth", tmp_path / "theirs")
    weights = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    home = {name: f"pytorch_model-{len(name) % 2}.bin" for name in weights}
    for file in set(home.values()):
        torch.save({name: weights[name] for name in weights if home[name] == file}, source / file)
    (source / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": home}))
    with pytest.raises(CheckpointError, match="is a pickle"):
        import_checkpoint(source, out)
    import_checkpoint(source, out, allow_pickle=True)
    assert_same_function(out, "syncdoth")


@pytest.mark.parametrize("place", ["args", "cfg", "cfg as a dict"])
@pytest.mark.parametrize("zipped", [True, False])
def test_fairseq(place: str, zipped: bool, tmp_path: Path, out: Path) -> None:
    """Its settings lie in the same file, the decoder's tensors have a prefix, and there is more."""
    source = make_checkpoint("torchscale", tmp_path / "theirs")
    fields = json.loads((source / "config.json").read_text())
    settings: Any = argparse.Namespace(**fields, arch="retnet_base", lr=[6e-4], data=None)
    held = {"args": settings, "cfg": None}
    if place != "args":
        held = {"args": None, "cfg": {"model": vars(settings) if "dict" in place else settings}}
    weights = load_file(source / "model.safetensors")
    content = {
        **held,
        "model": {f"decoder.{name}": tensor for name, tensor in weights.items()},
        "optimizer_history": [{"num_updates": 7, "optimizer_name": "FairseqAdam"}],
        "extra_state": {"epoch": 1},
        "last_optimizer_state": {"state": {0: {"exp_avg": torch.zeros(2)}}},
    }
    file = tmp_path / "checkpoint_best.pt"
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="is a pickle"):
        import_checkpoint(file, out)
    done = import_checkpoint(file, out, allow_pickle=True)
    assert done.layout == "torchscale"
    assert done.files == ()
    assert_same_function(out, "torchscale")


class Malicious:
    """What leaves a trace when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("allow", [False, True])
def test_malicious_pickle(allow: bool, raw: bool, tmp_path: Path, out: Path) -> None:
    """No code of a pickle is run, whatever the caller says."""
    source = make_checkpoint("torchscale", tmp_path / "theirs")
    trace, file = tmp_path / "trace", source / "weights.pt"

    def with_code(weights: dict[str, Tensor]) -> dict[str, Any]:
        return {"model": weights, "epoch": Malicious(trace)}

    as_pickle(source, file, with_code)
    if raw:
        file.write_bytes(pickle.dumps(Malicious(trace)))
    message = "is a pickle, .* --allow_pickle"
    if allow:
        message = "tensors and plain values" if raw else r"wants to call posix.mkdir, .*trust it"
    with pytest.raises(CheckpointError, match=message):
        import_checkpoint(file, out, allow_pickle=allow)
    assert not trace.exists()
    assert not out.exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 cut short", b"\x80\x04]."])
def test_damaged_pickle(content: bytes, tmp_path: Path, out: Path) -> None:
    source = make_checkpoint("torchscale", tmp_path / "theirs")
    (source / "weights.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"weights.pth (can't be read|holds no state dict)"):
        import_checkpoint(source / "weights.pth", out, allow_pickle=True)


@pytest.mark.parametrize("content", [[], {}, {"model": {}}, {"model": {"a": 1}}, torch.ones(2)])
def test_pickle_of_something_else(content: Any, tmp_path: Path, out: Path) -> None:
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match="holds no state dict"):
        import_checkpoint(tmp_path / "weights.pt", out, allow_pickle=True)


# What is refused, without a trace


def change_weights(directory: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    weights = load_file(directory / "model.safetensors")
    change(weights)
    save_file(weights, directory / "model.safetensors")


def write_fields(directory: Path, **fields: Any) -> None:
    (directory / "config.json").write_text(json.dumps(fields))


SOMEONE_ELSES: dict[str, tuple[dict[str, Any], str]] = {
    "of nobody": ({"model_type": "retnet", "d": 8}, "of no layout that is read here .*'retnet'"),
    "a Llama": ({"model_type": "llama", "d": 8}, "its fields are not theirs$"),
    "XATL": (
        {"decoder_embed_dim": 8, "decoder_retention_heads": 2, "groupnorm_affine": True},
        "is an XATL model .*'groupnorm_affine'; it is not supported",
    ),
    "syncdoth's first": ({"hidden_size": 8, "qk_dim": 8, "v_dim": 8}, "syncdoth's first version"),
    "a fork's in Flax": ({"num_rettention_heads": 3}, "a model in Flax"),
}


@pytest.mark.parametrize("kind", SOMEONE_ELSES)
def test_someone_elses_retnet(kind: str, tmp_path: Path, out: Path) -> None:
    fields, message = SOMEONE_ELSES[kind]
    source = make_checkpoint("fla", tmp_path / "theirs")
    write_fields(source, **fields)
    with pytest.raises(CheckpointError, match=message):
        import_checkpoint(source, out)
    assert not out.parent.exists()


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing there": (lambda d: os.rename(d, d.with_name("x")), "there is no .*theirs; pass a dir"),
    "no weights": (
        lambda d: (d / "model.safetensors").unlink(),
        "holds neither model.safetensors nor pytorch_model.bin",
    ),
    "no fields": (lambda d: (d / "config.json").unlink(), "there is no .*config.json; name the"),
    "fields that are no JSON": (
        lambda d: (d / "config.json").write_text("{"),
        "can't be read as JSON",
    ),
    "fields that are a list": (
        lambda d: (d / "config.json").write_text("[]"),
        "is no configuration",
    ),
    "a hybrid": (lambda d: change_fields(d, attn={"layers": [1]}), "attn=.* can't be converted"),
    "a tensor missing": (
        lambda d: change_weights(d, lambda w: w.pop("model.norm.weight")),
        r"theirs: fla weights and fields disagree \(1\): model.norm.weight is missing",
    ),
    "a tensor too many": (
        lambda d: change_weights(d, lambda w: w.update(extra=torch.ones(1))),
        "extra is not of this model",
    ),
    "another shape": (
        lambda d: change_weights(d, lambda w: w.update({"model.norm.weight": torch.ones(3)})),
        r"model.norm.weight is \[3\], expected \[16\]",
    ),
    "not numbers": (
        lambda d: change_weights(d, lambda w: w["model.norm.weight"].fill_(torch.nan)),
        r"theirs: fla weights can't be used \(1\): model.norm.weight holds NaN or infinity",
    ),
    "other tensors": (
        lambda d: save_file({"transformer.wte": torch.ones(1)}, d / "model.safetensors"),
        "has the fields of fla and other tensors, such as 'transformer.wte'",
    ),
    "cut short": (
        lambda d: os.truncate(d / "model.safetensors", 5000),
        "damaged or not safetensors .*; fetch it again",
    ),
    "another's tokenizer": (
        lambda d: (d / "tokenizer.json").write_text(
            json.dumps({"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": 259}]})
        ),
        "has the token id 259 and the embedding 259 rows; it is the tokenizer of another model",
    ),
    "a large list of pieces": (
        lambda d: (d / "tokenizer.json").write_text(
            json.dumps({"model": {"vocab": [["a", 0.0]] * 300}})
        ),
        "has the token id 299 and",
    ),
    "a broken tokenizer": (
        lambda d: (d / "tokenizer.json").write_text("[]"),
        "is not a readable tokenizer",
    ),
}


@pytest.mark.parametrize("bad", BAD)
def test_what_is_refused(bad: str, tmp_path: Path, out: Path) -> None:
    change, message = BAD[bad]
    source = make_checkpoint("fla", tmp_path / "theirs")
    change(source)
    with pytest.raises(CheckpointError, match=message):
        import_checkpoint(source, out)
    assert not out.parent.exists()


def test_other_tensors_than_fields(tmp_path: Path, out: Path) -> None:
    source = make_checkpoint("fla", tmp_path / "theirs")
    other = make_checkpoint("torchscale", tmp_path / "others")
    with pytest.raises(CheckpointError, match="the fields of torchscale and the tensors of fla"):
        import_checkpoint(source, out, fields_file=other / "config.json")


@pytest.mark.parametrize(
    ("layout", "options", "message"),
    [
        ("fla", {"layout": "torchscale"}, "is fla's by its fields and names, not torchscale's"),
        ("torchscale", {"layout": "syncdoth"}, "is torchscale's .* not syncdoth's"),
        ("fla", {"score_norm": "paper"}, "score_norm is for torchscale and syncdoth"),
        ("syncdoth", {"head_norm_eps": 1e-6}, "head_norm_eps is for torchscale"),
    ],
)
def test_what_contradicts(
    layout: str, options: dict[str, Any], message: str, tmp_path: Path, out: Path
) -> None:
    source = make_checkpoint(layout, tmp_path / "theirs")
    with pytest.raises(CheckpointError, match=message):
        import_checkpoint(source, out, **options)
    assert not out.parent.exists()


def test_what_can_not_be_exported(tmp_path: Path, out: Path) -> None:
    save_checkpoint(tmp_path / "ours", make_model("fla"))
    with pytest.raises(CheckpointError, match="torchscale can't express"):
        export_checkpoint(tmp_path / "ours", out, layout="torchscale")
    with pytest.raises(CheckpointError, match="syncdoth can be read, not written; choose torch"):
        export_checkpoint(tmp_path / "ours", out, layout="syncdoth")
    assert not out.parent.exists()


@pytest.mark.parametrize(
    ("decay", "back", "says"),
    [
        ("wide", "wide", "does"),
        ((0.75, 0.875), (0.75, 0.875), "does; its decays are rounded to fp32"),
    ],
)
def test_decays_of_our_own(decay: Any, back: Any, says: str, tmp_path: Path, out: Path) -> None:
    """Exported in a buffer, and known again."""
    config = ModelConfig(**{**AS_TORCHSCALE, "decay": decay})
    save_checkpoint(tmp_path / "ours", RetNet(config, generator=torch.Generator().manual_seed(0)))
    done = export_checkpoint(tmp_path / "ours", tmp_path / "theirs", layout="torchscale")
    assert done.exactness.endswith(says)
    import_checkpoint(tmp_path / "theirs", out)
    found = load_checkpoint(out).config.decay
    assert found == (back if isinstance(back, str) else pytest.approx(back, rel=1e-7))


def test_ours_need_no_conversion(tmp_path: Path, out: Path) -> None:
    save_checkpoint(tmp_path / "ours", make_model("fla"))
    with pytest.raises(CheckpointError, match="ours is a checkpoint of retnet already; --to torch"):
        import_checkpoint(tmp_path / "ours", out)


@pytest.mark.parametrize("is_file", [False, True])
def test_what_is_there_stays(is_file: bool, tmp_path: Path) -> None:
    source = make_checkpoint("fla", tmp_path / "theirs")
    there = tmp_path / "diary"
    if is_file:
        there.write_text("dear diary")
    else:
        there.mkdir()
        (there / "page").write_text("dear diary")
    before = snapshot(tmp_path)
    for work in (
        lambda: import_checkpoint(source, there),
        lambda: export_checkpoint(tmp_path / "theirs-ours", there, layout="fla"),
    ):
        with pytest.raises(CheckpointError, match="diary is there already; name a directory"):
            work()
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError("disk full")])
@pytest.mark.parametrize("moment", ["write_model", "shutil"])
def test_nothing_is_left_of_what_was_cut_off(
    moment: str, error: Any, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the weights were written and before, by Ctrl-C or a full disk."""
    source = make_checkpoint("fla", tmp_path / "theirs")
    real = convert.write_model

    def write_then_fail(*arguments: Any) -> None:
        real(*arguments)
        raise error

    def fail(*_: Any) -> None:
        raise error

    if moment == "shutil":
        monkeypatch.setattr(convert.shutil, "copyfile", fail)
    else:
        monkeypatch.setattr(convert, "write_model", write_then_fail)
    expected = CheckpointError if isinstance(error, OSError) else error
    with pytest.raises(expected):
        import_checkpoint(source, out)
    assert not out.parent.exists()


def test_what_others_put_beside_it_stays(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folders made on the way to the destination go with it, unless they are needed by now."""
    source = make_checkpoint("fla", tmp_path / "theirs")

    def fail(*_: Any) -> None:
        (out.parent / "diary").write_text("dear diary")
        raise OSError("disk full")

    monkeypatch.setattr(convert, "write_model", fail)
    with pytest.raises(CheckpointError, match="disk full"):
        import_checkpoint(source, out / "deeper")
    assert [path.name for path in out.parent.iterdir()] == ["diary"]
