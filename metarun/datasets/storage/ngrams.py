"""Strings as bags of n-grams: rows of integers, made once. A network has a vector for each integer.

A row holds the hashes of a string's distinct n-grams, then zeros up to the common width.
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
    """Which n-grams a row holds.

    `characters` are the sizes of n-grams of characters. With `words`, words and pairs of neighbouring words come before
    them; case and punctuation are ignored. N-grams beyond `width` are left out.
    """

    characters: Sequence[int]
    words: bool
    width: int

    def __str__(self) -> str:
        return f"{'words-' if self.words else ''}{'-'.join(map(str, self.characters))}-{self.width}"

    def encode(self, texts: Sequence[str], about: str) -> np.ndarray:
        """int32 [texts, width]; `about` names the texts in the progress bar."""
        rows = np.zeros((len(texts), self.width), dtype=np.int32)
        for row, text in zip(rows, tqdm(texts, desc=f"n-grams of {about}", unit="text", disable=None)):
            hashes = [hash_ngram(ngram) for ngram in list_ngrams(text, self.characters, self.words)[: self.width]]
            row[: len(hashes)] = hashes
        return rows


def list_ngrams(text: str, characters: Sequence[int], words: bool) -> list[str]:
    """The distinct n-grams: words, pairs of words, then characters by size; each kind in the order of the text.

    Those of words contain a `|`.
    """
    found = []
    if words:
        tokens = re.findall(r"\w+", text.lower())
        found = [f"{token}|" for token in tokens] + [f"{first}|{second}" for first, second in pairwise(tokens)]
        text = " ".join(tokens)
    text = f" {text} "
    found += [text[i : i + size] for size in characters for i in range(len(text) - size + 1)]
    return list(dict.fromkeys(found))


def hash_ngram(ngram: str) -> int:
    """1 .. 2^31 - 1, the same on every machine."""
    return (zlib.crc32(ngram.encode()) & 0x7FFFFFFF) or 1
