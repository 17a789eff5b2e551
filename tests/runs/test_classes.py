"""Answers class by class, counted by hand."""

import csv
from pathlib import Path

import numpy as np

from metarun.runs.classes import FEWEST, Pairs

CLASSES = np.array([[7, 3], [3, 5]])
ANSWERS = np.array([[[9.0, 1.0], [4.0, 6.0]], [[8.0, 2.0], [0.0, 10.0]]])  # rows: the class asked; columns: the answer


def test_answers_of_all_tasks_are_added_up_by_class() -> None:
    right, wrong = Pairs.count(ANSWERS, CLASSES).right, Pairs.count(ANSWERS, CLASSES).wrong
    assert dict(zip(right.first.tolist(), right.shares.tolist())) == {3: 14 / 20, 5: 1.0, 7: 0.9}
    found = {(i, j): share for i, j, share in zip(wrong.first.tolist(), wrong.second.tolist(), wrong.shares.tolist())}
    assert found == {(3, 5): 0.2, (3, 7): 0.4, (7, 3): 0.1}  # 5 was always told


def test_only_classes_that_were_asked_often_enough_are_hardest() -> None:
    hardest, confused = Pairs.count(ANSWERS, CLASSES).list_hardest([])
    assert (hardest, confused) == ([["class 3", 0.7]], [])  # 20 queries; the other classes, and all pairs, had 10
    many = np.repeat(ANSWERS, 2, 0), np.repeat(CLASSES, 2, 0)
    names = [f"bird {number}" for number in range(8)]
    hardest, confused = Pairs.count(*many).list_hardest(names)
    assert hardest == [["bird 3", 0.7], ["bird 7", 0.9], ["bird 5", 1.0]]
    assert confused == [["bird 3", "bird 7", 0.4], ["bird 3", "bird 5", 0.2], ["bird 7", "bird 3", 0.1]]
    assert FEWEST == 20


def test_the_table_names_what_each_class_was_taken_for(tmp_path: Path) -> None:
    Pairs.count(ANSWERS, CLASSES).write(tmp_path / "classes.csv", [])
    with (tmp_path / "classes.csv").open(newline="") as lines:
        found = list(csv.reader(lines))
    assert found == [
        ["class", "name", "queries", "accuracy", "taken for", "share"],
        ["3", "", "20", "0.7", "7", "0.4"],
        ["5", "", "10", "1.0", "", ""],
        ["7", "", "10", "0.9", "3", "0.1"],
    ]
