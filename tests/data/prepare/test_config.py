from typing import Any

import pytest

from retnet.data.prepare.config import PrepareConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sources": ()}, "sources must name at least one"),
        ({"out": ""}, "out must not be empty"),
        ({"text_field": ""}, "text_field must not be empty"),
        ({"train_bpe": 258}, "train_bpe must be an integer >= 259, got 258"),
        ({"workers": 0}, "workers must be an integer >= 1, got 0"),
        ({"shard_bytes": 1.5}, "shard_bytes must be an integer >= 1, got 1.5"),
        ({"validation_share": 0}, "validation_share must be a number between 0 and 1, got 0"),
        ({"validation_share": 1.0}, "validation_share must be a number between 0 and 1"),
        ({"tokenizer": "a", "train_bpe": 300}, "tokenizer and train_bpe can't go together"),
        ({"split_on": "a", "separator": ""}, "split_on and separator can't go together"),
        ({"validation": "a", "validation_share": 0.1}, "validation and validation_share can't"),
        ({"eos_token": "a"}, "eos_token is for a tokenizer that doesn't name one"),
        ({"split_on": "(a"}, r"split_on must be a regular expression, got '\(a': missing \)"),
    ],
)
def test_settings_that_do_not_do(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PrepareConfig(**{"sources": ("a",), **settings})


def test_settings_on_which_the_result_depends() -> None:
    one = PrepareConfig(sources=("a",), workers=1, out="a", skip_bad=True)
    assert one.settings() == PrepareConfig(sources=("a",), workers=2, out="b").settings()
    assert one.settings() != PrepareConfig(sources=("a", "b")).settings()
    assert PrepareConfig(sources=("a",), separator="").settings()["separator"] == ""
