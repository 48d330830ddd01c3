"""From sources to folders: every text comes out as it went in, on one side only."""

import json
import os
from pathlib import Path

import pytest

from retnet.data.prepare import passages
from retnet.data.prepare.config import PrepareConfig
from retnet.data.prepare.run import prepare
from retnet.data.tokens import load_tokens
from tests.data.prepare.conftest import Prepare, contents, train_of, validation_of

TEXTS = [f"text {number}: naïve 日本語 🙂\r\n\t\0<eos> {number * 'ab'}\n" for number in range(60)]


def write_lines(path: str, texts: list[str]) -> str:
    Path(path).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def both() -> list[bytes]:
    return sorted(train_of() + validation_of())


def encoded(texts: list[str]) -> list[bytes]:
    return sorted(text.encode() for text in texts)


@pytest.mark.parametrize("shard_bytes", [None, 50, 300])
def test_round_trip(prepare_here: Prepare, shard_bytes: int | None) -> None:
    """Whatever the size of the shards; some documents are held out, the others are trained on."""
    write_lines("a.jsonl", TEXTS)
    done = prepare_here("a.jsonl", shard_bytes=shard_bytes, validation_share=0.2)
    assert both() == encoded(TEXTS)
    assert 5 < len(validation_of()) < 25
    order = [text for text in encoded(TEXTS) if text in set(train_of())]
    assert sorted(train_of()) == order
    assert len(done.header.train) == (1 if shard_bytes is None else len(done.header.train))
    assert not done.was_complete
    assert not Path("out/unfinished").exists()


def test_order_is_that_of_the_input(prepare_here: Prepare) -> None:
    write_lines("a.jsonl", TEXTS)
    prepare_here("a.jsonl", shard_bytes=200, validation_share=0.2)
    assert train_of() == [text.encode() for text in TEXTS if text.encode() in train_of()]


def test_what_training_sees(prepare_here: Prepare) -> None:
    """Sequences, documents to validate on with their bytes, and what tells all this apart."""
    write_lines("a.jsonl", TEXTS)
    prepare_here("a.jsonl", shard_bytes=500, validation_share=0.2)
    data = load_tokens("out")
    assert len(data.train) == sum(len(text) + 1 for text in train_of())
    assert data.train_bytes == sum(map(len, train_of()))
    held_out = validation_of()
    assert [data.tokenizer.decode_bytes(each.ids.tolist()) for each in data.validation] == held_out
    assert [each.num_bytes for each in data.validation] == list(map(len, held_out))
    assert data.validation[-1].num_bytes == len(held_out[-1])
    assert [each.num_bytes for each in data.validation[1:3]] == list(map(len, held_out[1:3]))
    with pytest.raises(IndexError):
        _ = data.validation[len(held_out)]
    assert data.validation_bytes == sum(map(len, held_out))
    assert sum(each.num_bytes for each in data.excerpt(100)) <= 200
    assert (data.vocab_size, data.bos_id, data.eos_id) == (259, 1, 2)
    prepare_here("a.jsonl", shard_bytes=500, validation_share=0.3, out="other")
    assert load_tokens("other").fingerprint != data.fingerprint


def test_the_split_follows_the_text_alone(prepare_here: Prepare) -> None:
    """Copies are on one side, and on the same whatever else there is and however it is stored."""
    texts = [text.replace("\0", "") for text in TEXTS]  # a file with a NUL would be binary
    write_lines("a.jsonl", texts + texts)
    prepare_here("a.jsonl", validation_share=0.2)
    first = set(validation_of())
    assert not first & set(train_of())
    assert len(validation_of()) == 2 * len(first)
    Path("folder").mkdir()
    for number, text in enumerate(reversed(texts[10:])):
        Path(f"folder/{number}.txt").write_bytes(text.encode())
    prepare_here("folder", validation_share=0.2, out="other")
    assert set(validation_of("other")) == first & {text.encode() for text in texts[10:]}


def test_workers_do_not_matter(prepare_here: Prepare) -> None:
    write_lines("a.jsonl", TEXTS)
    prepare_here("a.jsonl", shard_bytes=300, workers=1)
    prepare_here("a.jsonl", shard_bytes=300, workers=2, out="other")
    assert contents("other") == contents("out")
    assert len(contents("out")) > 20


def test_one_document_loses_its_end(prepare_here: Prepare) -> None:
    """As where `retnet train` reads it itself: a tenth, never from inside of a character."""
    Path("a.txt").write_text("ä" * 1005)
    prepare_here("a.txt")
    (train,), (held_out,) = train_of(), validation_of()
    assert (train + held_out).decode() == "ä" * 1005
    assert held_out.decode() == "ä" * 101
    assert load_tokens("a.txt").validation[0].num_bytes == len(held_out)


@pytest.mark.parametrize("shard_bytes", [70, 1 << 20])
def test_one_long_document_over_many_shards(
    prepare_here: Prepare, monkeypatch: pytest.MonkeyPatch, shard_bytes: int
) -> None:
    """Its shards follow each other as if they were one, and the end of the last is held out."""
    monkeypatch.setattr(passages, "LONGEST_WHOLE_BYTES", 100)
    text = "".join(f"line {number}\n" for number in range(100)).encode()
    Path("a.txt").write_bytes(text)
    done = prepare_here("a.txt", shard_bytes=shard_bytes)
    (train,), (held_out,) = train_of(), validation_of()
    assert train + held_out == text
    assert len(held_out) >= 35
    assert len(done.header.train) >= (10 if shard_bytes == 70 else 1)
    assert sum(shard.num_bytes for shard in done.header.train) == len(train)


def test_three_long_documents(prepare_here: Prepare) -> None:
    """None of them is held out, because that would be a third of the text."""
    Path("books").mkdir()
    for name, size in {"a": 1000, "b": 3000, "c": 2000}.items():
        Path(f"books/{name}.txt").write_text(name * size)
    prepare_here("books")
    assert train_of() == [b"a" * 1000, b"b" * 2400, b"c" * 2000]
    assert validation_of() == [b"b" * 600]


def test_at_least_one_document_is_held_out(prepare_here: Prepare) -> None:
    """With its copies, where chance alone would hold out none."""
    texts = TEXTS[:20] + TEXTS[:20]
    write_lines("a.jsonl", texts)
    prepare_here("a.jsonl", validation_share=1e-9, shard_bytes=300)
    assert both() == encoded(texts)
    assert len(validation_of()) == 2
    assert not set(validation_of()) & set(train_of())


def test_something_is_left_to_train_on(prepare_here: Prepare) -> None:
    write_lines("a.jsonl", TEXTS)
    prepare_here("a.jsonl", validation_share=1 - 1e-9, shard_bytes=300)
    assert both() == encoded(TEXTS)
    assert len(validation_of()) == 1


def test_too_little_to_hold_any_out(prepare_here: Prepare) -> None:
    Path("a.txt").write_text("hello")
    with pytest.raises(ValueError, match="too little text to hold any out: 5 bytes; pass more"):
        prepare_here("a.txt")


def test_validation_that_is_given(prepare_here: Prepare) -> None:
    """It is held out whole, and what is in it is not trained on."""
    write_lines("a.jsonl", TEXTS)
    write_lines("b.jsonl", [*TEXTS[5:8], "other"])
    done = prepare_here("a.jsonl", validation="b.jsonl", shard_bytes=300)
    assert validation_of() == [text.encode() for text in [*TEXTS[5:8], "other"]]
    assert train_of() == [text.encode() for text in TEXTS[:5] + TEXTS[8:]]
    assert done.header.source["left_out"] == {"held out elsewhere": 3}


def test_long_validation_that_is_given(
    prepare_here: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A document that comes in passages, over several parts, is one again."""
    monkeypatch.setattr(passages, "LONGEST_WHOLE_BYTES", 100)
    text = "".join(f"line {number}\n" for number in range(100))
    Path("b.txt").write_text(text)
    write_lines("a.jsonl", TEXTS)
    prepare_here("a.jsonl", validation="b.txt", shard_bytes=70)
    assert validation_of() == [text.encode()]
    assert [each.num_bytes for each in load_tokens("out").validation] == [len(text)]


def test_empty_documents_are_counted(prepare_here: Prepare) -> None:
    Path("a.jsonl").write_text('{"text": ""}\n{"text": " \\n"}\n{"text": null}\n\n')
    write_lines("b.jsonl", TEXTS)
    done = prepare_here("a.jsonl", "b.jsonl")
    assert both() == encoded(TEXTS)
    assert done.header.source["left_out"] == {"empty": 3}


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("shard_bytes", [200, 1 << 20])
def test_a_limit(prepare_here: Prepare, shard_bytes: int, workers: int) -> None:
    """About so much of the beginning, the same whatever the workers."""
    write_lines("a.jsonl", TEXTS)
    prepare_here("a.jsonl", max_bytes=2000, shard_bytes=shard_bytes, workers=workers)
    text = sum(map(len, both()))
    assert 2000 <= text <= 2600
    chosen = set(both())
    assert [text.encode() in chosen for text in TEXTS] == sorted(
        (text.encode() in chosen for text in TEXTS), reverse=True
    )


# --- going on


def interrupt(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Let the write of a record fail, as a full disk would, once so many were written."""
    from retnet.data.prepare import parts

    written = []
    real = parts.write_text

    def write(path: Path, text: str) -> None:
        written.append(path)
        if len(written) > after:
            raise OSError(28, "No space left on device", str(path))
        real(path, text)

    monkeypatch.setattr(parts, "write_text", write)


@pytest.mark.parametrize("after", [0, 1, 4])
def test_going_on(prepare_here: Prepare, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """What was complete is not done again, and the result is that of one go."""
    write_lines("a.jsonl", TEXTS)
    prepare_here("a.jsonl", shard_bytes=300, out="straight")
    with monkeypatch.context() as patched:
        interrupt(patched, after)
        with pytest.raises(OSError, match="No space left"):
            prepare_here("a.jsonl", shard_bytes=300)
    records = sorted(Path("out/unfinished").glob("train-*-*.json"))
    assert len(records) == after
    times = [path.stat().st_mtime_ns for path in records]
    with monkeypatch.context() as patched:
        interrupt(patched, 0)
        with pytest.raises(OSError, match="No space left"):
            prepare_here("a.jsonl", shard_bytes=300)
    assert [path.stat().st_mtime_ns for path in records] == times
    prepare_here("a.jsonl", shard_bytes=300)
    assert contents("out") == contents("straight")


def test_going_on_inside_a_stream(prepare_here: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compressed file is one unit of several parts: those that are complete are skipped."""
    import gzip

    write_lines("a.jsonl", TEXTS)
    Path("a.jsonl.gz").write_bytes(gzip.compress(Path("a.jsonl").read_bytes()))
    settings = {"shard_bytes": 200, "validation_share": 0.2}
    prepare_here("a.jsonl.gz", out="straight", **settings)
    with monkeypatch.context() as patched:
        interrupt(patched, 3)
        with pytest.raises(OSError, match="No space left"):
            prepare_here("a.jsonl.gz", **settings)
    prepare_here("a.jsonl.gz", **settings)
    assert contents("out") == contents("straight")
    assert len(contents("out")) > 10


@pytest.mark.parametrize("step", range(6))
def test_interrupted_while_shards_are_put_in_their_places(
    prepare_here: Prepare, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    from retnet.data.prepare import finish

    write_lines("a.jsonl", TEXTS)
    prepare_here("a.jsonl", shard_bytes=300, out="straight")
    real, count = os.replace, 0

    def replace(before: Path, after: Path) -> None:
        nonlocal count
        count += 1
        if count > step and "unfinished" in str(before):
            raise OSError(5, "Input/output error", str(after))
        real(before, after)

    with monkeypatch.context() as patched:
        patched.setattr(finish.os, "replace", replace)
        count = -10_000
        # Only what `finish` moves counts.
        moved = finish._moved

        def counted(*arguments: object) -> object:
            nonlocal count
            count = max(count, 0)
            return moved(*arguments)

        patched.setattr(finish, "_moved", counted)
        with pytest.raises(OSError, match="Input/output"):
            prepare_here("a.jsonl", shard_bytes=300)
    assert not Path("out/data.json").exists()
    prepare_here("a.jsonl", shard_bytes=300)
    assert contents("out") == contents("straight")


def test_complete_already(prepare_here: Prepare) -> None:
    write_lines("a.jsonl", TEXTS)
    prepare_here("a.jsonl")
    before = contents("out")
    assert prepare_here("a.jsonl", workers=2).was_complete
    assert contents("out") == before
    with pytest.raises(ValueError, match=r"holds prepared tokens already, and split was 'train'"):
        prepare_here("a.jsonl", split="test")
    write_lines("a.jsonl", TEXTS[:5])
    with pytest.raises(ValueError, match=r"already, and the inputs had other contents; name ano"):
        prepare_here("a.jsonl")


def test_what_is_left_of_a_complete_preparation(prepare_here: Prepare) -> None:
    """Killed after the header was written, before the working folder was deleted."""
    write_lines("a.jsonl", TEXTS)
    prepare_here("a.jsonl")
    before = contents("out")
    Path("out/unfinished").mkdir()
    assert prepare_here("a.jsonl").was_complete
    assert contents("out") == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"text_field": "b"}, r"text_field was 'text' there, is 'b'"),
        ({"separator": ""}, r"separator was not given there, is ''"),
        ({"shard_bytes": 200}, r"shard_bytes was 300 there, is 200"),
        ({"tokenizer": "t"}, r"tokenizer was not given there, is 't'"),
    ],
)
def test_going_on_with_other_settings(
    prepare_here: Prepare,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, object],
    message: str,
) -> None:
    from retnet.data.tokenizer import ByteTokenizer

    Path("a.jsonl").write_text(
        "".join(json.dumps({"text": text, "b": text}) + "\n" for text in TEXTS)
    )
    ByteTokenizer().save("t")
    with monkeypatch.context() as patched:
        interrupt(patched, 1)
        with pytest.raises(OSError, match="No space left"):
            prepare_here("a.jsonl", shard_bytes=300)
    with pytest.raises(ValueError, match=f"unfinished preparation, and {message}; go on with"):
        prepare_here("a.jsonl", **{"shard_bytes": 300, **settings})
    prepare_here("a.jsonl", shard_bytes=300, skip_bad=True, workers=2)


def test_going_on_with_other_input(prepare_here: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("texts").mkdir()
    write_lines("texts/a.jsonl", TEXTS)
    with monkeypatch.context() as patched:
        interrupt(patched, 1)
        with pytest.raises(OSError, match="No space left"):
            prepare_here("texts", shard_bytes=300)
    write_lines("texts/b.jsonl", TEXTS)
    with pytest.raises(ValueError, match=r"texts/b\.jsonl is new in the input"):
        prepare_here("texts", shard_bytes=300)
    Path("texts/b.jsonl").unlink()
    with Path("texts/a.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(ValueError, match=r"texts/a\.jsonl has changed since"):
        prepare_here("texts", shard_bytes=300)
    Path("texts/a.jsonl").rename("texts/c.jsonl")
    with pytest.raises(ValueError, match=r"texts/c\.jsonl is new in the input"):
        prepare_here("texts", shard_bytes=300)


def test_other_settings_before_anything_is_complete(prepare_here: Prepare) -> None:
    """A first try with a wrong field must not stand in the way of the second."""
    write_lines("a.jsonl", TEXTS)
    with pytest.raises(ValueError, match="there is no field 'content'"):
        prepare_here("a.jsonl", text_field="content", train_bpe=300, skip_bad=False)
    prepare_here("a.jsonl")
    assert both() == encoded(TEXTS)


def test_input_that_changes_meanwhile(
    prepare_here: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a file is still being written: half of it would be taken for all."""
    from retnet.data.prepare import run

    write_lines("a.jsonl", TEXTS)
    real = run.make_plan

    def make_plan(*arguments: object) -> object:
        plan = real(*arguments)  # type: ignore[arg-type]
        write_lines("a.jsonl", TEXTS + TEXTS)
        return plan

    monkeypatch.setattr(run, "make_plan", make_plan)
    with pytest.raises(ValueError, match=r"a\.jsonl was changed while it was read; begin anew"):
        prepare_here("a.jsonl")


def test_what_a_killed_process_left(prepare_here: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lines("a.jsonl", TEXTS)
    with monkeypatch.context() as patched:
        interrupt(patched, 1)
        with pytest.raises(OSError, match="No space left"):
            prepare_here("a.jsonl", shard_bytes=300)
    Path("out/unfinished/.train-00002-000-train.bin.123.part").write_bytes(b"half")
    Path("out/.validation-00000.bin.123.part").write_bytes(b"half")
    prepare_here("a.jsonl", shard_bytes=300)
    assert not [name for name in contents("out") if name.startswith(".")]


# --- what is refused


@pytest.mark.parametrize("make", ["file", "folder"])
def test_something_else_in_the_way(prepare_here: Prepare, make: str) -> None:
    write_lines("a.jsonl", TEXTS)
    if make == "file":
        Path("out").write_text("mine")
    else:
        Path("out").mkdir()
        Path("out/mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"out 'out' (is a file|holds other files \(mine\.txt\))"):
        prepare_here("a.jsonl")
    assert (Path("out") if make == "file" else Path("out/mine.txt")).read_text() == "mine"


def test_two_at_once(prepare_here: Prepare) -> None:
    fcntl = pytest.importorskip("fcntl")
    write_lines("a.jsonl", TEXTS)
    Path("out/unfinished").mkdir(parents=True)
    with Path("out/unfinished/lock").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match=r"'out' is written by another `retnet prepare`"):
            prepare_here("a.jsonl")
    prepare_here("a.jsonl")


def test_no_text_at_all(prepare_here: Prepare) -> None:
    Path("a.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(ValueError, match=r"any out: 0 bytes \(documents left out: 1 empty\)"):
        prepare_here("a.jsonl")
    Path("a.txt").write_text("")
    with pytest.raises(ValueError, match=r"'a\.txt' is empty \(0 bytes\)"):
        prepare_here("a.txt", out="other")


def test_validation_without_text(prepare_here: Prepare) -> None:
    write_lines("a.jsonl", TEXTS)
    Path("b.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(ValueError, match=r"validation holds no text \(documents left out: 1"):
        prepare_here("a.jsonl", validation="b.jsonl")
    with pytest.raises(ValueError, match=r"no text to train on \(documents left out: 1 empty\)"):
        prepare_here("b.jsonl", validation="a.jsonl", out="other")


@pytest.mark.parametrize("workers", [1, 2])
def test_errors_of_workers_reach_the_caller(prepare_here: Prepare, workers: int) -> None:
    """With the line of the whole file, and with nothing left that writes."""
    write_lines("a.jsonl", TEXTS)
    with Path("a.jsonl").open("a") as file:
        file.write('{"other": 1}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 61: there is no field 'text', there are"):
        prepare_here("a.jsonl", workers=workers, shard_bytes=300)
    done = prepare_here("a.jsonl", workers=workers, shard_bytes=300, skip_bad=True)
    assert done.header.source["left_out"] == {"bad": 1}
    assert both() == encoded(TEXTS)


def test_a_tokenizer_that_changed(prepare_here: Prepare, tmp_path: Path) -> None:
    """Then the ids mean something else than what the header says."""
    from retnet.data.prepare.tokenizing import write_tokenizer
    from retnet.data.tokenizer import ByteTokenizer

    write_lines("a.jsonl", TEXTS)
    prepare_here("a.jsonl")
    content = json.loads(Path("out/tokenizer.json").read_text())
    content["model"]["vocab"]["!"], content["model"]["vocab"]['"'] = 37, 36
    write_tokenizer(Path("out"), {"tokenizer.json": json.dumps(content).encode()})
    with pytest.raises(ValueError, match="the tokenizer in out is not the one that made its tok"):
        load_tokens("out")
    ByteTokenizer().save("out")
    load_tokens("out")


def test_a_worker_that_dies(prepare_here: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by the system, where memory is short: it is said at once, and nothing hangs."""
    from retnet.data.prepare import workers

    started = []
    real = workers._start

    def start(*arguments: Path) -> workers._Worker:
        started.append(real(*arguments))
        if len(started) == 2:
            started[-1].process.kill()
        return started[-1]

    monkeypatch.setattr(workers, "_start", start)
    write_lines("a.jsonl", TEXTS)
    with pytest.raises(OSError, match=r"a process ended by itself \(exit code -9\)"):
        prepare_here("a.jsonl", workers=2, shard_bytes=300)
    assert not any(worker.process.is_alive() for worker in started)


def test_progress_reaches_the_end(tmp_path: Path) -> None:
    from retnet.data.prepare.run import Progress

    path = tmp_path / "a.jsonl"
    write_lines(str(path), TEXTS)
    seen: list[Progress] = []
    config = PrepareConfig(
        sources=(str(path),), out=str(tmp_path / "out"), shard_bytes=300, workers=1
    )
    prepare(config, report=seen.append)
    reading = [now for now in seen if now.stage == "preparing"]
    assert reading[-1].read_bytes == reading[-1].total_bytes == path.stat().st_size
    assert [now.read_bytes for now in reading] == sorted(now.read_bytes for now in reading)


def test_no_process_without_work(prepare_here: Prepare) -> None:
    """Few for little text, and none that would do what a limit throws away."""
    from retnet.data.prepare.plan import Plan
    from retnet.data.prepare.run import available_cores, num_workers
    from retnet.data.prepare.texts import TextInput, TextPiece
    from retnet.data.prepare.units import Rule, Unit

    def plan(*sizes: int) -> Plan:
        units = []
        for size in sizes:
            whole = TextInput(path="a", size=size, changed_ns=0, division=None, is_found=False)
            units.append(
                Unit(
                    name="a",
                    pieces=(TextPiece(input=whole, start=0, stop=size),),
                    rule=Rule(below=0, longest=0),
                    part_bytes=1,
                    most_bytes=None,
                    skip_bad=False,
                )
            )
        return Plan(train=tuple(units), validation=(), inputs=[])

    def count(plan: Plan, **settings: int) -> int:
        return num_workers(PrepareConfig(sources=("a",), **settings), plan)

    assert count(plan(1000)) == 1
    assert count(plan(*[10**9] * 100)) == available_cores()
    assert count(plan(1000, 1000), workers=2) == 2
    assert count(plan(1000, 1000, 1000), workers=3, max_bytes=1500) == 2
