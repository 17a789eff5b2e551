"""The one-shot classification task of Lake et al. 2015: 20 published runs of 20 ways within one alphabet.

The support of a run is one person's drawings, the queries are another's; Koch et al. 2015 report the mean over these
400 queries. The published archive, all_runs.zip, copies drawings of the collection; the table below says which.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from metarun.core.types import TaskShape

RUN = TaskShape(ways=20, shots=1, queries=1)

# Alphabet -> the persons who drew support and query of each of its two runs; the characters in the order of classes.
# fmt: off
RUNS = {
    "Atlantean": (((5, 8), (3, 2)),
        (1, 2, 3, 4, 5, 7, 8, 9, 10, 13, 14, 16, 19, 20, 21, 22, 23, 24, 25, 26)),
    "Ge_ez": (((3, 7), (4, 2)),
        (1, 2, 3, 4, 5, 6, 8, 9, 10, 12, 14, 15, 16, 17, 18, 20, 21, 23, 24, 25)),
    "Glagolitic": (((6, 4), (3, 2)),
        (1, 2, 3, 5, 6, 7, 14, 17, 18, 19, 20, 21, 26, 28, 31, 34, 36, 37, 40, 43)),
    "Gurmukhi": (((5, 2), (8, 3)),
        (3, 6, 7, 8, 9, 13, 14, 15, 16, 17, 31, 22, 25, 26, 29, 32, 33, 38, 43, 44)),
    "Kannada": (((2, 1), (8, 3)),
        (1, 3, 5, 8, 11, 12, 13, 14, 19, 20, 21, 23, 25, 26, 27, 28, 33, 35, 40, 41)),
    "Malayalam": (((3, 7), (4, 2)),
        (2, 4, 5, 9, 13, 14, 15, 16, 17, 19, 20, 21, 22, 25, 27, 29, 30, 37, 43, 46)),
    "Manipuri": (((8, 4), (7, 3)),
        (3, 4, 6, 8, 9, 11, 12, 13, 15, 17, 19, 21, 22, 25, 29, 33, 35, 36, 37, 39)),
    "Old_Church_Slavonic_(Cyrillic)": (((4, 8), (1, 2)),
        (2, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 23, 24, 25, 30, 33, 41, 44, 45)),
    "Tengwar": (((1, 4), (8, 7)),
        (1, 2, 4, 5, 7, 8, 9, 10, 11, 12, 13, 16, 18, 19, 20, 21, 22, 23, 24, 25)),
    "Tibetan": (((1, 3), (8, 5)),
        (1, 2, 3, 5, 6, 7, 8, 9, 11, 13, 14, 15, 21, 22, 24, 33, 35, 36, 38, 41)),
}
# fmt: on


def locate_runs(characters: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Rows [T, N, 1] and drawings [T, 1, 2] (of support and query) in a table whose rows are `characters`.

    characters: "images_evaluation/<Alphabet>/characterNN" and so on.
    """
    row = {character: number for number, character in enumerate(characters)}
    rows, drawings = [], []
    for alphabet, (pairs, numbers) in RUNS.items():
        for pair in pairs:
            rows.append([row[f"images_evaluation/{alphabet}/character{number:02}"] for number in numbers])
            drawings.append([drawer - 1 for drawer in pair])
    return torch.tensor(rows)[:, :, None], torch.tensor(drawings)[:, None]
