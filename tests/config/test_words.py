"""Numbers with their nouns, and text for terminals that cannot print all of it."""

import io
import sys

import pytest

from metarun.config.words import count, printable


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (1, "class", "1 class"),
        (5, "class", "5 classes"),
        (0, "task", "0 tasks"),
        (2, "query", "2 queries"),
        (5, "way", "5 ways"),
    ],
)
def test_a_number_with_its_noun(number: int, noun: str, text: str) -> None:
    assert count(number, noun) == text


@pytest.mark.parametrize(("encoding", "text"), [("utf-8", "98 ± 1 λ"), ("ascii", "98 +- 1 \\u03bb")])
def test_what_a_terminal_cannot_print_is_written_otherwise(
    monkeypatch: pytest.MonkeyPatch, encoding: str, text: str
) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    assert printable("98 ± 1 λ") == text
