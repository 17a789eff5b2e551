"""Strings as bags of n-grams: rows of integers, made once, whose vectors a network looks up.

A row holds the hashes of a string's distinct n-grams, and zeros up to the common width.
"""

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from tqdm import tqdm


@dataclass(frozen=True)
class Bag:
    """Which n-grams are taken: of characters, in these sizes; with `words`, before them words and neighbouring pairs.

    With `words` the case and whatever is between words do not count. What is beyond `width` is left out.
    """

    characters: Sequence[int]
    words: bool
    width: int

    def __str__(self) -> str:
        return f"{'words-' if self.words else ''}{'-'.join(map(str, self.characters))}-{self.width}"

    def rows(self, texts: Sequence[str], about: str) -> np.ndarray:
        """int32 [texts, width]."""
        rows = np.zeros((len(texts), self.width), dtype=np.int32)
        for row, text in zip(rows, tqdm(texts, desc=f"n-grams of {about}", unit="text", disable=None)):
            hashes = [hashed(ngram) for ngram in ngrams(text, self.characters, self.words)[: self.width]]
            row[: len(hashes)] = hashes
        return rows


def ngrams(text: str, characters: Sequence[int], words: bool) -> list[str]:
    """Distinct, in the order of their kinds and then of the text; one of words is told by its `|`."""
    found = []
    if words:
        tokens = re.findall(r"\w+", text.lower())
        found = [f"{token}|" for token in tokens] + [f"{first}|{second}" for first, second in pairwise(tokens)]
        text = " ".join(tokens)
    text = f" {text} "
    found += [text[i : i + size] for size in characters for i in range(len(text) - size + 1)]
    return list(dict.fromkeys(found))


def hashed(ngram: str) -> int:
    """1 .. 2^31 - 1, the same on every machine."""
    return (zlib.crc32(ngram.encode()) & 0x7FFFFFFF) or 1
