"""Baselines by hand, and on the molecules of the tasks beside whose result they stand."""

import math
from pathlib import Path

import pytest
import torch

from metarun.core.types import Examples
from metarun.engine.baselines import NEIGHBOURS, compare_molecules, grow_forest, weigh_ngrams
from metarun.runs.folder import RunFolder
from tests.conftest import Command


def test_the_similarity_of_molecules_by_hand() -> None:
    """Shared bits over all bits: 2/3, 1/4, 1/2, 0 and 1/3, of which the last but one is not among the nearest."""
    rows = [[1, 1, 0, 0, 0], [0, 0, 1, 1, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]]
    support = Examples(torch.tensor(rows, dtype=torch.float32), torch.tensor([0, 1, 1, 0, 0]))
    query = torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.0]])
    assert NEIGHBOURS == 4
    assert compare_molecules(support, query, 2).tolist() == [pytest.approx([2 / 3, 1 / 4 + 1 / 3])]


def test_words_of_many_training_texts_weigh_little() -> None:
    """By dictionaries: 7 is in all of the training texts, 8 in one of three, 9 in none."""
    training = torch.tensor([[7, 8, 0], [7, 0, 0], [7, 5, 0]])
    weight = {7: 0.0, 8: math.log(4 / 2), 9: math.log(4 / 1)}
    texts = [[7, 8, 0], [9, 0, 0], [8, 9, 0]]
    vectors = [{word: weight[word] for word in text if word} for text in texts]
    lengths = [math.sqrt(sum(value**2 for value in vector.values())) for vector in vectors]

    def cosine(first: int, second: int) -> float:
        return sum(v * vectors[second].get(w, 0) for w, v in vectors[first].items()) / lengths[first] / lengths[second]

    support = Examples(torch.tensor(texts[:2]), torch.tensor([0, 1]))
    found = weigh_ngrams(training)(support, torch.tensor(texts[2:]), 2)
    assert found[0].tolist() == pytest.approx([-(2 - 2 * cosine(2, 0)), -(2 - 2 * cosine(2, 1))], abs=1e-5)


def test_a_forest_gives_probabilities_of_all_classes() -> None:
    x = torch.eye(4).repeat(6, 1)
    y = torch.tensor([0, 0, 2, 2]).repeat(6)
    found = grow_forest(Examples(x, y), x[:4], 3)
    assert found.argmax(1).tolist() == [0, 0, 2, 2]
    assert found.sum(1).tolist() == pytest.approx([1.0] * 4)
    assert found[:, 1].tolist() == [0.0] * 4


def write_molecules(path: Path, bad: bool) -> None:
    """Six assays, in which amines are active and alcohols are not."""
    names = [f"assay{number}" for number in range(6)]
    lines = [",".join(["smiles", *names])]
    for size in range(1, 13):
        lines += [f"N{'C' * size},{','.join('1' * 6)}", f"O{'C' * size},{','.join('0' * 6)}"]
    lines += [f"C1{'C' * size},{','.join('1' * 6)}" for size in range(20) if bad]  # rings that do not close
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.mark.integration
@pytest.mark.parametrize("bad", [False, True])
def test_a_run_on_molecules_has_rows_of_fingerprints_where_these_can_be_made(
    metarun: Command, place: Path, bad: bool
) -> None:
    write_molecules(place / "own.csv", bad)
    short = ("trainer.steps=1", "eval.tasks=12", "eval.val_tasks=2", "shots=8", "queries=8", "eval.queries=8")
    answer = metarun(
        "dataset=assays", "dataset.path=own.csv", "algo=protonet", *short, "device=cpu", "hydra.run.dir=run"
    )
    assert answer.code == 0, answer.err
    result = RunFolder(place / "run").result()
    assert result is not None
    if bad:
        assert result.rows.keys() == {"test", "untrained"}
        assert "no row tanimoto: encoder=morgan: 'C1" in answer.out + answer.err
        return
    assert result.rows.keys() == {"test", "untrained", "tanimoto", "forest"}
    chance = 1 - 0.5  # of the average precision of a perfect ranking: a half is active
    assert result.estimate("tanimoto").mean == pytest.approx(chance, abs=0.03)
    assert result.estimate("forest").mean == pytest.approx(chance, abs=0.03)
    assert [result.rows[name].assays for name in ("test", "tanimoto")] == [1, 1]
