"""`generate` in all the ways people call it: with the cache as without, padded as alone."""

import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, DynamicCache, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from retnet.data.tokenizer import ByteTokenizer
from retnet.generation import generate as own_generate
from retnet.hf import RetNetCache, RetNetForCausalLM
from retnet.sampling import SamplingParams

ROOT = Path(__file__).parents[2]
GREEDY: dict[str, Any] = {"do_sample": False, "eos_token_id": None}


def left_padded(ids: Tensor, num_padding: int) -> tuple[Tensor, Tensor]:
    """The ids with so much padding on the left of the first row, and the mask."""
    mask = torch.ones_like(ids)
    mask[0, :num_padding] = 0
    return ids.masked_fill(mask == 0, 0), mask


def new_tokens(model: RetNetForCausalLM, ids: Tensor, **options: Any) -> Tensor:
    """What `generate` adds to the ids, [rows, new]."""
    written = model.generate(ids, **{"max_new_tokens": 16, **GREEDY, **options})
    assert isinstance(written, Tensor)
    return written[:, ids.shape[1] :]


def recomputed(model: RetNetForCausalLM, row: Tensor, num_tokens: int) -> list[int]:
    """The likeliest next tokens after a row [T], each from a call that reads everything again."""
    for _ in range(num_tokens):
        best = model(row[None], use_cache=False).logits[0, -1].argmax()
        row = torch.cat([row, best[None]])
    return row[-num_tokens:].tolist()


@pytest.mark.parametrize("score_norm", ["none", "decay", "paper"])
def test_greedy(make_model: Any, ids: Tensor, score_norm: str) -> None:
    model = make_model(score_norm=score_norm)
    written = new_tokens(model, ids)
    assert written.tolist() == [recomputed(model, row, 16) for row in ids]
    assert len(set(written.flatten().tolist())) > 8, "a model that writes one token shows nothing"


def test_as_the_projects_own(model: RetNetForCausalLM, ids: Tensor) -> None:
    params = SamplingParams(max_tokens=16, temperature=0)
    own = torch.stack(list(own_generate(model.to_retnet(), ids, params)), dim=1)
    assert torch.equal(new_tokens(model, ids), own)


def test_without_cache(model: RetNetForCausalLM, ids: Tensor) -> None:
    assert torch.equal(new_tokens(model, ids, use_cache=False), new_tokens(model, ids))


def test_sampling(model: RetNetForCausalLM, ids: Tensor) -> None:
    """The same seed writes the same, with the cache and without; returns of a row differ."""
    options = {"do_sample": True, "temperature": 2.0, "top_k": 50, "num_return_sequences": 3}
    torch.manual_seed(0)
    expected = new_tokens(model, ids, **options)
    torch.manual_seed(0)
    assert torch.equal(new_tokens(model, ids, use_cache=False, **options), expected)
    assert len({tuple(row) for row in expected.tolist()}) == 6


@pytest.mark.parametrize(("num_beams", "num_returns"), [(3, 1), (4, 3)])
def test_beams(model: RetNetForCausalLM, ids: Tensor, num_beams: int, num_returns: int) -> None:
    """States follow their beams: as without a cache, where nothing can be left behind."""
    options = {"num_beams": num_beams, "num_return_sequences": num_returns}
    written = new_tokens(model, ids, **options)
    assert torch.equal(written, new_tokens(model, ids, use_cache=False, **options))
    assert len(written) == 2 * num_returns
    assert not torch.equal(written[::num_returns], new_tokens(model, ids))


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"prefill_chunk_size": 4}], ids=str)
def test_left_padding(model: RetNetForCausalLM, ids: Tensor, options: Any) -> None:
    padded, mask = left_padded(ids, 7)
    written = new_tokens(model, padded, attention_mask=mask, **options)
    assert torch.equal(written[:1], new_tokens(model, ids[:1, 7:], **options))
    assert torch.equal(written[1:], new_tokens(model, ids[1:], **options))


@pytest.mark.parametrize("size", [1, 3, 7, 20, 64])
def test_prefill_in_pieces(model: RetNetForCausalLM, ids: Tensor, size: int) -> None:
    assert torch.equal(new_tokens(model, ids, prefill_chunk_size=size), new_tokens(model, ids))


def test_embeddings(model: RetNetForCausalLM, ids: Tensor) -> None:
    embeddings = model.get_input_embeddings()(ids)
    written = model.generate(inputs_embeds=embeddings, max_new_tokens=16, **GREEDY)
    assert torch.equal(written, new_tokens(model, ids))
    both = model.generate(ids, inputs_embeds=embeddings, max_new_tokens=16, **GREEDY)
    assert torch.equal(both[:, 20:], written)


class Collector(BaseStreamer):
    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.ended = False

    def put(self, value: Tensor) -> None:
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        self.ended = True


def test_streamer(model: RetNetForCausalLM, ids: Tensor) -> None:
    streamer = Collector()
    written = new_tokens(model, ids[:1], streamer=streamer)
    assert streamer.tokens == [*ids[0].tolist(), *written[0].tolist()]
    assert streamer.ended


def test_stop_strings(model: RetNetForCausalLM, ids: Tensor, tmp_path: Path) -> None:
    ByteTokenizer().save(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokens = new_tokens(model, ids[:1])[0].tolist()
    stop = next(
        (ByteTokenizer().decode_bytes(tokens[i : i + 1]).decode(errors="ignore"), i)
        for i in range(2, 16)
        if 35 <= tokens[i] < 128 and tokens[i] not in tokens[:i]
    )
    written = new_tokens(model, ids[:1], stop_strings=[stop[0]], tokenizer=tokenizer)
    assert written[0].tolist() == tokens[: stop[1] + 1]


def test_stopping_criteria(model: RetNetForCausalLM, ids: Tensor) -> None:
    def enough(tokens: Tensor, scores: Any, **_: Any) -> Tensor:
        return torch.full((len(tokens),), tokens.shape[1] >= 25)

    criteria = StoppingCriteriaList([enough])
    assert new_tokens(model, ids, stopping_criteria=criteria).shape == (2, 5)


def test_scores_and_hidden_states(model: RetNetForCausalLM, ids: Tensor) -> None:
    out = model.generate(
        ids,
        max_new_tokens=5,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        output_hidden_states=True,
        **GREEDY,
    )
    full = model(out.sequences, output_hidden_states=True, use_cache=False)
    for i in range(5):
        expected = full.logits[:, 19 + i]
        torch.testing.assert_close(out.logits[i], expected.float(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(out.scores[i], expected.float(), rtol=1e-4, atol=1e-4)
    assert len(full.hidden_states) == model.config.num_layers + 1
    for i, layer in enumerate(full.hidden_states):
        torch.testing.assert_close(out.hidden_states[0][i], layer[:, :20])
        torch.testing.assert_close(out.hidden_states[2][i], layer[:, 21:22])


# --- going on from a cache


def cached(model: RetNetForCausalLM, ids: Tensor, **options: Any) -> Any:
    return model.generate(
        ids, max_new_tokens=6, return_dict_in_generate=True, **{**GREEDY, **options}
    )


@pytest.mark.parametrize("num_padding", [0, 7])
def test_going_on_with_all_ids(model: RetNetForCausalLM, ids: Tensor, num_padding: int) -> None:
    padded, mask = left_padded(ids, num_padding)
    out = cached(model, padded, attention_mask=mask)
    more = torch.cat([out.sequences, ids[:, :4]], dim=1)
    more_mask = torch.cat([mask, torch.ones(2, 10, dtype=torch.int64)], dim=1)
    options = {"attention_mask": more_mask, "max_new_tokens": 8}
    expected = new_tokens(model, more, **options)
    went_on = new_tokens(model, more, past_key_values=out.past_key_values, **options)
    assert torch.equal(went_on, expected)


@pytest.mark.parametrize("num_padding", [0, 7])
def test_going_on_with_new_ids(model: RetNetForCausalLM, ids: Tensor, num_padding: int) -> None:
    """Only what has not been read: the last token written, and four more."""
    padded, mask = left_padded(ids, num_padding)
    out = cached(model, padded, attention_mask=mask)
    more = torch.cat([out.sequences, ids[:, :4]], dim=1)
    more_mask = torch.cat([mask, torch.ones(2, 10, dtype=torch.int64)], dim=1)
    expected = model(more, attention_mask=more_mask).logits[:, -5:]
    got = model(more[:, -5:], attention_mask=more_mask, past_key_values=out.past_key_values)
    torch.testing.assert_close(got.logits, expected)
    assert got.past_key_values.get_seq_length() == 30
    assert got.past_key_values.state.position.tolist() == [30 - num_padding, 30]


def test_going_on_from_a_saved_state(model: RetNetForCausalLM, ids: Tensor, tmp_path: Path) -> None:
    from retnet.checkpoint import load_state, save_state

    core = model.to_retnet()
    cache = model(ids, use_cache=True).past_key_values
    save_state(tmp_path / "state", cache.state, core)
    loaded = RetNetCache.from_state(load_state(tmp_path / "state", core), model.config)
    expected = model(torch.cat([ids, ids], dim=1)).logits[:, 20:]
    torch.testing.assert_close(model(ids, past_key_values=loaded).logits, expected)


# --- what a constant state is for, and what it can't do


def test_state_bytes_stay(make_model: Any, ids: Tensor) -> None:
    """2,000 tokens on, the state takes as many bytes as after the prompt."""
    model = make_model(dtype=torch.float32)
    start = model(ids, use_cache=True).past_key_values.num_bytes
    out = model.generate(ids, max_new_tokens=2000, return_dict_in_generate=True, **GREEDY)
    assert out.sequences.shape[1] == 2020
    assert (
        out.past_key_values.num_bytes
        == start
        == 2 * 4 * model.config.to_model_config().state_numbers
    )


def test_memory_stays() -> None:
    """2,000 tokens raise a fresh process no further above its model than 200 do, but for noise."""
    script = """
        import torch
        from retnet.hf import RetNetConfig, RetNetForCausalLM
        from retnet.measure import peak_rise_bytes

        torch.set_num_threads(1)
        model = RetNetForCausalLM(RetNetConfig(d_model=64, num_layers=2, num_heads=2)).eval()
        ids = torch.randint(3, 259, (4, 16))

        def write(num_tokens):
            model.generate(ids, max_new_tokens=num_tokens, do_sample=False, eos_token_id=None)

        write(200)
        print(*(peak_rise_bytes(lambda: write(number)) for number in (200, 2000)))
    """
    command = [sys.executable, "-c", dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    short, long = map(int, done.stdout.split())
    assert long - short < 2**20, f"{short} bytes for 200 tokens, {long} for 2,000"


@pytest.mark.parametrize(
    "options", [{"prompt_lookup_num_tokens": 3}, {"assistant_model": None}], ids=str
)
def test_assisted_decoding(model: RetNetForCausalLM, ids: Tensor, options: Any) -> None:
    if "assistant_model" in options:
        options = {"assistant_model": model}
    with pytest.raises(ValueError, match="not supported with stateful models"):
        new_tokens(model, ids[:1], **options)


def test_a_stock_cache(model: RetNetForCausalLM, ids: Tensor) -> None:
    with pytest.raises(TypeError, match="must be a RetNetCache, got DynamicCache: a RetNet keeps"):
        new_tokens(model, ids, past_key_values=DynamicCache())
    with pytest.raises(TypeError, match="must be a RetNetCache, got tuple"):
        model(ids, past_key_values=((ids, ids),))


@pytest.mark.parametrize("kind", ["static", "quantized", "offloaded"])
def test_another_kind_of_cache(model: RetNetForCausalLM, ids: Tensor, kind: str) -> None:
    with pytest.raises(ValueError, match=f"cache_implementation must be left out .* '{kind}'"):
        new_tokens(model, ids, cache_implementation=kind)


def test_nothing_new(model: RetNetForCausalLM, ids: Tensor) -> None:
    """A prompt that the cache has read to its end, or beyond."""
    cache = model(ids, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="a prompt must go beyond what the cache has read"):
        new_tokens(model, ids[:, :15], past_key_values=cache)


def test_right_padding(model: RetNetForCausalLM, ids: Tensor) -> None:
    _, mask = left_padded(ids, 7)
    with pytest.raises(ValueError, match=r"must pad on the left .* padding_side"):
        new_tokens(model, ids, attention_mask=mask.flip(1))
