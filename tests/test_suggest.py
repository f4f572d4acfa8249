"""The name that was meant."""

from __future__ import annotations

import pytest

from mtl_cloud.suggest import did_you_mean, nearest

NAMES = ("us-west-1", "us-east-1", "P4d", "batch_size")


@pytest.mark.parametrize(
    ("word", "name"),
    [("us-esat-1", "us-east-1"), ("p4D", "P4d"), ("batchsize", "batch_size"), ("learning", None), ("", None)],
)
def test_the_nearest_name_is_the_one_with_the_same_letters_or_most_of_them(word: str, name: str | None) -> None:
    assert nearest(word, NAMES) == name


def test_a_question_is_asked_only_when_a_name_is_near() -> None:
    assert did_you_mean("batch_sise", NAMES) == "did you mean batch_size?"
    assert did_you_mean("zebra", NAMES) is None
