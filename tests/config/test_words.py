"""Numbers with their nouns."""

import pytest

from metarun.config.words import count


@pytest.mark.parametrize(
    ("number", "noun", "shown"),
    [
        (0, "class", "0 classes"),
        (1, "class", "1 class"),
        (2, "class", "2 classes"),
        (1, "shot", "1 shot"),
        (1300, "picture", "1300 pictures"),
    ],
)
def test_a_noun_follows_its_number(number: int, noun: str, shown: str) -> None:
    assert count(number, noun) == shown
