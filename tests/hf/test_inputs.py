"""Masks, positions and packed rows: each row as if it were alone, or an error that says why not."""

from typing import Any

import pytest
import torch
from torch import Tensor

from retnet.hf import RetNetCache, RetNetForCausalLM, RetNetForSequenceClassification
from retnet.hf.inputs import read_padding

NORMS = pytest.mark.parametrize("score_norm", ["none", "paper"])


def logits(model: RetNetForCausalLM, ids: Tensor, **options: Any) -> Tensor:
    out: Tensor = model(ids, **options).logits
    return out


def packed(*lengths: int) -> tuple[Tensor, Tensor]:
    """(position_ids, seq_idx) [1, T] of documents of these lengths in a row."""
    positions = torch.cat([torch.arange(length) for length in lengths])
    numbers = torch.cat([torch.full((length,), i) for i, length in enumerate(lengths)])
    return positions[None], numbers[None]


@NORMS
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(make_model: Any, ids: Tensor, score_norm: str, side: str) -> None:
    """On the right too, where no cache is kept."""
    model = make_model(score_norm=score_norm)
    mask = torch.ones_like(ids)
    tokens = slice(6, None) if side == "left" else slice(0, 14)
    mask[0] = 0
    mask[0, tokens] = 1
    got = logits(model, ids, attention_mask=mask)
    torch.testing.assert_close(got[:1, tokens], logits(model, ids[:1, tokens]))
    torch.testing.assert_close(got[1:], logits(model, ids[1:]))
    assert torch.equal(logits(model, ids, attention_mask=mask.bool()), got)


def test_padding_on_both_sides(model: RetNetForCausalLM, ids: Tensor) -> None:
    mask = torch.ones_like(ids)
    mask[:, :3] = mask[:, 15:] = 0
    got = logits(model, ids, attention_mask=mask)
    torch.testing.assert_close(got[:, 3:15], logits(model, ids[:, 3:15]))


def test_no_cache_of_right_padding(model: RetNetForCausalLM, ids: Tensor) -> None:
    """Not even where the configuration would have one; asked for, it is an error."""
    mask = torch.ones_like(ids)
    assert model(ids, attention_mask=mask).past_key_values is not None
    mask[0, 15:] = 0
    assert model(ids, attention_mask=mask).past_key_values is None
    with pytest.raises(ValueError, match="attention_mask must pad on the left where a cache"):
        model(ids, attention_mask=mask, use_cache=True)


def test_use_cache(make_model: Any, ids: Tensor) -> None:
    """By default in evaluation and not in training."""
    model = make_model()
    assert model(ids).past_key_values is not None
    assert model(ids, use_cache=False).past_key_values is None
    assert model.train()(ids).past_key_values is None
    assert model(ids, use_cache=True).past_key_values is not None
    model = make_model(use_cache=False)
    assert model(ids).past_key_values is None
    for given in (model, make_model().train()):  # a cache that is passed is wanted
        cache = RetNetCache(model.config)
        given(ids, past_key_values=cache)
        assert cache.get_seq_length() == 20
        given(ids, past_key_values=cache, use_cache=False)
        assert cache.get_seq_length() == 20


@pytest.mark.parametrize("first", [7, 20])
def test_scoring_after_a_shared_past(model: RetNetForCausalLM, ids: Tensor, first: int) -> None:
    """Padding on the right is no harm where the state after it isn't kept."""
    past = torch.cat([ids[:1], ids[:1]])
    cache = model(past[:, :first], use_cache=True).past_key_values
    mask = torch.ones(2, 12)
    mask[0, 9:] = 0
    got = logits(model, ids[:, :12], attention_mask=mask, past_key_values=cache, use_cache=False)
    expected = logits(model, torch.cat([past[:, :first], ids[:, :12]], dim=1))[:, first:]
    torch.testing.assert_close(got[mask.bool()], expected[mask.bool()])
    with pytest.raises(ValueError, match="or pass use_cache=False"):
        model(ids[:, :12], attention_mask=mask, past_key_values=cache)


@NORMS
@pytest.mark.parametrize("how", [["position_ids"], ["seq_idx"], ["position_ids", "seq_idx"]])
def test_packed_rows(make_model: Any, ids: Tensor, score_norm: str, how: list[str]) -> None:
    """Documents in a row see nothing of each other."""
    model = make_model(score_norm=score_norm)
    position_ids, seq_idx = packed(5, 1, 8, 6)
    given = {"position_ids": position_ids, "seq_idx": seq_idx}
    options = {name: given[name] for name in how}
    got = logits(model, ids[:1], **options)
    alone = torch.cat([logits(model, part) for part in ids[:1].split([5, 1, 8, 6], 1)], dim=1)
    torch.testing.assert_close(got, alone)
    both_rows = {name: value.expand(2, -1) for name, value in options.items()}
    torch.testing.assert_close(logits(model, ids, **both_rows)[:1], alone)
    torch.testing.assert_close(logits(model, ids, **options)[:1], alone)


def test_packed_row_by_its_cuts(model: RetNetForCausalLM, ids: Tensor) -> None:
    """What DataCollatorWithFlattening says where it is not asked for positions."""
    cuts = torch.tensor([0, 5, 6, 14, 20], dtype=torch.int32)
    got = logits(model, ids[:1], cu_seq_lens_q=cuts)
    torch.testing.assert_close(got, logits(model, ids[:1], seq_idx=packed(5, 1, 8, 6)[1]))
    with pytest.raises(ValueError, match="cu_seq_lens_q must end at the 20 tokens of its row"):
        model(ids[:1], cu_seq_lens_q=cuts[:-1])


def test_packed_rows_go_on_from_the_cache(model: RetNetForCausalLM, ids: Tensor) -> None:
    """The first document does; where another begins at the cut, position_ids tell."""
    position_ids, seq_idx = packed(14, 6)
    expected = logits(model, ids, seq_idx=seq_idx)
    cache = model(ids[:, :8], use_cache=True).past_key_values
    rest = {"seq_idx": seq_idx[:, 8:], "position_ids": position_ids[:, 8:]}
    got = logits(model, ids[:, 8:], past_key_values=cache, **rest)
    torch.testing.assert_close(got, expected[:, 8:])
    cache = model(ids[:, :14], use_cache=True).past_key_values
    rest = {"seq_idx": seq_idx[:, 14:], "position_ids": position_ids[:, 14:]}
    with pytest.raises(ValueError, match=r"must go on where the cache stopped, at \[14, 14\]"):
        model(ids[:, 14:], past_key_values=cache, **rest)


def test_packed_rows_leave_the_last_documents_state(model: RetNetForCausalLM, ids: Tensor) -> None:
    _, seq_idx = packed(5, 15)
    cache = model(ids[:1], seq_idx=seq_idx, use_cache=True).past_key_values
    assert cache.state.position.tolist() == [15]
    expected = logits(model, torch.cat([ids[:1, 5:], ids[1:]], dim=1))[:, 15:]
    torch.testing.assert_close(logits(model, ids[1:], past_key_values=cache), expected)


def test_positions(model: RetNetForCausalLM, ids: Tensor) -> None:
    """Where they begin makes no difference; that they go on is checked."""
    expected = logits(model, ids)
    for first in (0, 100):
        position_ids = torch.arange(first, first + 20)[None]
        torch.testing.assert_close(logits(model, ids, position_ids=position_ids), expected)
    cache = model(ids[:, :12], use_cache=True).past_key_values
    rest = torch.arange(12, 20)[None].expand(2, -1)
    got = logits(model, ids[:, 12:], past_key_values=cache, position_ids=rest)
    torch.testing.assert_close(got, expected[:, 12:])


def test_positions_of_padding_mean_nothing(model: RetNetForCausalLM, ids: Tensor) -> None:
    mask = torch.ones_like(ids)
    mask[0, :6] = 0
    expected = logits(model, ids, attention_mask=mask)
    for filler in (0, 1, 77):
        position_ids = (mask.cumsum(1) - 1).masked_fill(mask == 0, filler)
        got = logits(model, ids, attention_mask=mask, position_ids=position_ids)
        torch.testing.assert_close(got[0, 6:], expected[0, 6:])
        torch.testing.assert_close(got[1], expected[1])
        pieces = model(
            ids[:, :4], attention_mask=mask[:, :4], position_ids=position_ids[:, :4], use_cache=True
        )
        got = logits(
            model,
            ids[:, 4:],
            attention_mask=mask,
            position_ids=position_ids[:, 4:],
            past_key_values=pieces.past_key_values,
        )
        torch.testing.assert_close(got[0, 2:], expected[0, 6:])
    right = mask.flip(1)
    position_ids = (right.cumsum(1) - 1).masked_fill(right == 0, 77)
    got = logits(model, ids, attention_mask=right, position_ids=position_ids)
    torch.testing.assert_close(got[0, :14], logits(model, ids[:1, :14])[0])


def test_positions_that_jump(model: RetNetForCausalLM, ids: Tensor) -> None:
    position_ids = torch.arange(20)[None] * 2
    with pytest.raises(ValueError, match="position_ids must count up by one, or begin again at 0"):
        model(ids, position_ids=position_ids)


def test_positions_that_do_not_go_on(model: RetNetForCausalLM, ids: Tensor) -> None:
    cache = model(ids, use_cache=True).past_key_values
    with pytest.raises(ValueError, match=r"must go on where the cache stopped, at \[20, 20\]"):
        model(ids, past_key_values=cache, position_ids=torch.arange(20)[None])


@pytest.mark.parametrize("keep", [0, 1, 3, torch.tensor([2, 5])], ids=str)
def test_logits_to_keep(model: RetNetForCausalLM, ids: Tensor, keep: Any) -> None:
    expected = logits(model, ids)
    columns = keep if isinstance(keep, Tensor) else slice(-keep, None)
    torch.testing.assert_close(logits(model, ids, logits_to_keep=keep), expected[:, columns])


def test_no_new_tokens(model: RetNetForCausalLM, ids: Tensor) -> None:
    mask = torch.ones_like(ids)
    mask[0, :6] = 0
    cache = model(ids, attention_mask=mask, use_cache=True).past_key_values
    none = torch.arange(20, 20)[None]
    out = model(ids[:, :0], attention_mask=mask, position_ids=none, past_key_values=cache)
    assert out.logits.shape == (2, 0, 259)
    assert cache.state.position.tolist() == [14, 20]


def test_hidden_states_by_the_configuration(make_model: Any, ids: Tensor) -> None:
    model = make_model(output_hidden_states=True)
    states = model(ids).hidden_states
    torch.testing.assert_close(states[0], model.get_input_embeddings()(ids))
    torch.testing.assert_close(model.lm_head(states[-1]), model(ids).logits)
    assert model(ids, output_hidden_states=False).hidden_states is None


def test_loss(model: RetNetForCausalLM, ids: Tensor) -> None:
    """The mean over the labels that count, shifted by one."""
    labels = ids.clone()
    labels[0, :9] = -100
    out = model(ids, labels=labels)
    costs = torch.nn.functional.cross_entropy(
        out.logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
    )
    torch.testing.assert_close(out.loss, costs)
    as_tuple = model(ids, labels=labels, return_dict=False)
    torch.testing.assert_close(as_tuple[0], out.loss)


@pytest.mark.parametrize("side", ["left", "right"])
def test_classifier_reads_the_last_token(make_config: Any, ids: Tensor, side: str) -> None:
    """By the mask, or by the padding's id."""
    torch.manual_seed(0)
    model = RetNetForSequenceClassification(make_config(num_labels=3)).double().eval()
    tokens = slice(6, None) if side == "left" else slice(0, 14)
    mask = torch.ones_like(ids)
    mask[0] = 0
    mask[0, tokens] = 1
    padded = ids.masked_fill(mask == 0, 0)
    got = logits(model, padded, attention_mask=mask)
    expected = torch.cat([logits(model, ids[:1, tokens]), logits(model, ids[1:])])
    torch.testing.assert_close(got, expected)
    if side == "right":
        torch.testing.assert_close(logits(model, padded), expected)
    embeddings = model.get_input_embeddings()(padded)
    got = model(inputs_embeds=embeddings, attention_mask=mask).logits
    torch.testing.assert_close(got, expected)


def test_classifier_goes_on_from_a_cache(make_config: Any, ids: Tensor) -> None:
    """The mask's last columns are about the new tokens."""
    model = RetNetForSequenceClassification(make_config()).double().eval()
    cache = model(ids[:, :12], use_cache=True).past_key_values
    mask = torch.ones_like(ids)
    mask[0, 17:] = 0
    got = model(ids[:, 12:], attention_mask=mask, past_key_values=cache, use_cache=False).logits
    torch.testing.assert_close(got, logits(model, ids, attention_mask=mask))


def test_classifier_has_one_score_a_row(make_config: Any, ids: Tensor) -> None:
    model = RetNetForSequenceClassification(make_config())
    for packing in ({"seq_idx": packed(5, 15)[1]}, {"cu_seq_lens_q": torch.tensor([0, 5, 20])}):
        with pytest.raises(ValueError, match="one document a row"):
            model(ids, **packing)


@pytest.mark.parametrize(
    ("num_labels", "labels", "problem"),
    [
        (3, torch.tensor([0, 2]), "single_label_classification"),
        (1, torch.tensor([0.5, 2.0]), "regression"),
        (3, torch.tensor([[0.0, 1, 1], [1, 0, 0]]), "multi_label_classification"),
    ],
)
def test_classifier_loss(
    make_config: Any, ids: Tensor, num_labels: int, labels: Tensor, problem: str
) -> None:
    model = RetNetForSequenceClassification(make_config(num_labels=num_labels)).eval()
    out = model(ids, labels=labels)
    assert model.config.problem_type == problem
    losses = torch.nn.functional
    expected = {
        "single_label_classification": losses.cross_entropy,
        "regression": lambda x, y: losses.mse_loss(x.squeeze(), y),
        "multi_label_classification": losses.binary_cross_entropy_with_logits,
    }[problem](out.logits, labels)
    torch.testing.assert_close(out.loss, expected)


# --- what can't be


def test_masks_of_scores(model: RetNetForCausalLM, ids: Tensor) -> None:
    with pytest.raises(ValueError, match=r"attention_mask must be \[B, T\].* got \[2, 1, 20, 20\]"):
        model(ids, attention_mask=torch.ones(2, 1, 20, 20))


@pytest.mark.parametrize("shape", [(2, 19), (2, 21), (3, 20), (1, 20)], ids=str)
def test_masks_of_another_shape(model: RetNetForCausalLM, ids: Tensor, shape: Any) -> None:
    """Full or not: padding of another column would be taken for this one's."""
    with pytest.raises(ValueError, match=r"attention_mask must be \[2, 0 columns .* \+ 20\]"):
        model(ids, attention_mask=torch.ones(shape))


@pytest.mark.parametrize("shape", [(20,), (1, 19), (3, 20)], ids=str)
def test_positions_of_another_shape(
    model: RetNetForCausalLM, ids: Tensor, shape: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=r"position_ids must be \[2, 20\] or \[1, 20\]"):
        model(ids, position_ids=torch.arange(shape[-1]).expand(shape))


def test_ids_without_rows(model: RetNetForCausalLM, ids: Tensor) -> None:
    with pytest.raises(ValueError, match=r"input_ids must be \[B, T\], got \[20\]; wrap a row"):
        model(ids[0])


def test_padding_between_tokens(model: RetNetForCausalLM, ids: Tensor) -> None:
    mask = torch.ones_like(ids)
    mask[1, 8] = 0
    with pytest.raises(ValueError, match="got padding between tokens"):
        model(ids, attention_mask=mask)


def test_padding_after_the_past(model: RetNetForCausalLM, ids: Tensor) -> None:
    cache = model(ids, use_cache=True).past_key_values
    mask = torch.ones(2, 40)
    mask[0, 20:25] = 0
    with pytest.raises(ValueError, match="it would age their state; batch rows of one length"):
        model(ids, attention_mask=mask, past_key_values=cache)


def test_cache_of_another_batch(model: RetNetForCausalLM, ids: Tensor) -> None:
    cache = model(ids, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="it belongs to another model or batch"):
        model(ids[:1], past_key_values=cache)


@pytest.mark.parametrize("changes", [{"num_layers": 3}, {"num_heads": 4}, {"d_model": 64}], ids=str)
def test_cache_of_another_model(make_model: Any, ids: Tensor, changes: Any) -> None:
    cache = make_model(**changes)(ids, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="it belongs to another model or batch"):
        make_model()(ids, past_key_values=cache)


def test_ids_beyond_the_vocabulary(model: RetNetForCausalLM, ids: Tensor) -> None:
    ids[0, 0] = 400
    with pytest.raises(ValueError, match=r"ids in \[0, 259\), .* 400; is the tokenizer another"):
        model(ids)


def test_ids_or_embeddings(model: RetNetForCausalLM, ids: Tensor) -> None:
    embeddings = model.get_input_embeddings()(ids)
    for given in ({}, {"input_ids": ids, "inputs_embeds": embeddings}):
        with pytest.raises(ValueError, match="pass one of input_ids and inputs_embeds"):
            model(**given)


def test_full_masks_are_dropped(ids: Tensor) -> None:
    """A mask of ones costs nothing: the layers don't see it."""
    assert read_padding(torch.ones_like(ids), 20).mask is None
    assert read_padding(torch.ones(2, 30), 20).mask is None
