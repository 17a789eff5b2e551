"""Ratings as tasks: what is read, who and what is new, and the bias model."""

import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metarun.config.errors import ConfigError
from metarun.core.batch import unstack
from metarun.core.seeding import generator_for
from metarun.core.types import Split, TaskShape
from metarun.datasets.movielens import ListedUsers, MovieLens, Users
from metarun.datasets.storage.ratings import read_ratings
from metarun.testing import check_dataset
from tests.support.tiny_ratings import ITEMS, dataset, list_ratings, write_ratings

SHAPE = TaskShape(1, 4, 3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_ratings(tmp_path / "films")


def test_it_fulfils_what_every_dataset_must(folder: Path) -> None:
    check_dataset(
        "movielens", f"dataset.path={folder}", "shots=4", "queries=3", "dataset.split_fractions=[0.5,0.2,0.3]"
    )


@pytest.mark.parametrize("form", ["dat", "table", "zip"])
def test_all_forms_are_the_same_ratings(folder: Path, tmp_path: Path, form: str) -> None:
    other: Path = tmp_path / "other"
    if form == "dat":
        write_ratings(other, "dat")
    elif form == "table":
        other = tmp_path / "mine.tsv"
        rows = [f"{user}\t{item}\t{stars}\t{time}" for user, item, stars, time in list_ratings()]
        other.write_text("\n".join(["user\titem\trating\ttime", *rows]), encoding="utf-8")
    else:
        other = Path(shutil.make_archive(str(tmp_path / "films"), "zip", tmp_path, "films"))
    one, two = read_ratings(folder, "one"), read_ratings(other, form)
    assert one.users == two.users
    for name in ("user", "item", "rating"):
        assert torch.equal(getattr(one, name), getattr(two, name))
    if form == "table":
        assert two.attributes.shape == (ITEMS, 0)
    else:
        assert one.names == two.names == ["year", "genres: Comedy", "genres: Drama", "genres: War"]
        assert torch.equal(one.attributes, two.attributes)


def test_ratings_of_a_user_are_in_the_order_of_time(folder: Path) -> None:
    found = read_ratings(folder, "order")
    expected = sorted(list_ratings(), key=lambda row: (str(row[0]), row[3]))
    assert [found.users[u] for u in found.user.tolist()] == [str(row[0]) for row in expected]
    assert [found.items[i] for i in found.item.tolist()] == [str(row[1]) for row in expected]
    assert found.rating.tolist() == [row[2] for row in expected]


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("users", ["new", "known"])
@pytest.mark.parametrize("items", ["known", "new"])
def test_nothing_of_a_test_was_trained_on_but_the_past_of_known_users(
    folder: Path, split: Split, users: str, items: str
) -> None:
    data = dataset(folder, users=users, items=items)
    table, source = data.table, data.tasks(split, SHAPE)
    assert isinstance(source, ListedUsers)
    assert source.spec.listed == len(source.chosen) > 0
    owner = torch.bucketize(source.chosen, table.starts[1:], right=True)
    assert (owner == owner[:, :1]).all()
    assert len(owner[:, 0].unique()) == len(owner)
    assert {table.split[user] for user in owner.flatten().tolist()} == {"train" if users == "known" else split}
    support, query = source.chosen[:, :4], source.chosen[:, 4:]
    assert table.known[table.item[support]].all()
    assert (table.known[table.item[query]] == (items == "known")).all()
    assert (table.trained[support] == (users == "known")).all()
    assert not table.trained[query].any()
    if users == "new" and items == "known":
        assert (query.min(1).values > support.max(1).values).all()


def test_known_users_of_validation_are_not_those_of_the_test(folder: Path) -> None:
    data = dataset(folder, users="known")
    val, test = (set(data.choose(split, SHAPE)[:, 0].tolist()) for split in ("val", "test"))
    assert not val & test


def test_a_task_of_training_is_a_stretch_of_what_a_user_has_rated(folder: Path) -> None:
    data = dataset(folder, hide=0.4)
    source = data.tasks("train", SHAPE)
    assert isinstance(source, Users)
    table = data.table
    stretches = defaultdict(list)
    for row in table.trained.nonzero()[:, 0].tolist():
        stretches[int(torch.bucketize(torch.tensor(row), table.starts[1:], right=True))].append(
            float(table.rating[row])
        )
    hidden = []
    for task in unstack(source.sample(300, generator_for("tasks"))):
        stars = torch.cat([task.support.y, task.query.y]).flatten().tolist()
        assert any(stars == own[i : i + 7] for own in stretches.values() for i in range(len(own)))
        hidden += (task.query.x[:, :2] == 0).all(1).tolist()
        assert not (task.support.x[:, 1] == 0).any()
    assert np.mean(hidden) == pytest.approx(0.4, abs=0.05)


def test_the_bias_model_is_that_of_a_linear_system_and_leaves_each_rating_out(folder: Path) -> None:
    """The minimum of the penalised error, solved as one system; an effect without a rating, by summing the others."""
    data = dataset(folder)
    table = data.table
    rows = table.trained.nonzero()[:, 0]
    user = torch.bucketize(rows, table.starts[1:], right=True).numpy()
    item, stars = table.item[rows].numpy(), table.rating[rows].double().numpy()
    users, items = len(table.split), len(table.known)
    design = np.zeros((len(rows), users + items))
    design[np.arange(len(rows)), user] = design[np.arange(len(rows)), users + item] = 1
    penalty = np.diag([3.0] * users + [2.0] * items)
    above = stars - stars.mean()
    effects = np.linalg.solve(design.T @ design + penalty, design.T @ above)
    user_effect, item_effect = effects[:users], effects[users:]
    others = ~table.trained
    seen = table.number[others] > 0
    expected = torch.from_numpy(item_effect)[table.item[others]][seen]
    torch.testing.assert_close(table.effect[others][seen].double(), expected, rtol=0, atol=1e-4)
    for place in (0, 17, 101):
        same = (item == item[place]) & (np.arange(len(rows)) != place)
        without = (above - user_effect[user])[same].sum() / (same.sum() + 2.0)
        assert table.effect[rows[place]] == pytest.approx(without, abs=1e-4)
        assert table.number[rows[place]] == same.sum()


def test_the_rules_by_hand(folder: Path) -> None:
    data = dataset(folder)
    task = unstack(data.tasks("test", SHAPE).sample(1, generator_for("any")))[0]
    table, (support, query) = data.table, task
    stars, effects, mean = support.y.flatten().tolist(), support.x[:, 0].tolist(), table.mean
    user = sum(y - mean - effect for y, effect in zip(stars, effects)) / (4 + 3)
    expected = {
        "bias": [mean + effect + user for effect in query.x[:, 0].tolist()],
        "item_mean": [mean + effect for effect in query.x[:, 0].tolist()],
        "user_mean": [sum(stars) / 4] * 3,
        "overall_mean": [mean] * 3,
    }
    for rule, values in expected.items():
        assert table.predict(rule, support, query.x).flatten().tolist() == pytest.approx(values, abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split_fractions": [0.5, 0.2]}, r"dataset.split_fractions is \[0.5, 0.2\]: three numbers"),
        ({"new_items": 1.0}, r"no rating is left to train on: lower dataset.new_items or dataset.held_out"),
    ],
)
def test_settings_that_leave_nothing_are_refused(folder: Path, changes: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataset(folder, **changes).prepare()


def test_more_ratings_than_anybody_has_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"shots \+ queries is 60 \+ 41 = 101: none of the new users of test has 60"):
        dataset(folder).tasks("test", TaskShape(1, 60, 41))
    with pytest.raises(ConfigError, match=r"shots \+ queries is 60 \+ 41 = 101: no user of train has more than"):
        dataset(folder).tasks("train", TaskShape(1, 60, 41))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("user,item,stars\n1,2,x", "mine.csv: line 2 has a rating or a time that is no number"),
        ("user,item,stars\n1,2,3\n1,2,4", "mine.csv has more than one rating of an item by a user"),
        ("who,item,stars\n1,2,3", "mine.csv: its first line must name the columns user,item,rating"),
        ("user,item,stars\n1,2,nan", "mine.csv has a rating or a time that is not finite"),
    ],
)
def test_tables_that_cannot_be_used_are_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mine.csv").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        read_ratings(tmp_path / "mine.csv", text)


def test_missing_files_are_told_of(tmp_path: Path) -> None:
    missing = dataset(tmp_path / "nowhere")
    assert "put ml-latest-small or ml-1m of https://grouplens.org" in missing.describe()
    with pytest.raises(ConfigError, match=r"dataset=movielens: nothing at .*nowhere: put ml-latest-small"):
        missing.prepare()
    with pytest.raises(ConfigError, match=r"has no ratings.csv or ratings.tsv or ratings.dat"):
        dataset(tmp_path).prepare()


def test_the_real_set(data_folder: str | None) -> None:
    if data_folder is None or not (Path(data_folder) / "movielens-latest-small").is_dir():
        pytest.skip("MovieLens is real data: set METARUN_DATA to the folder that has it")
    data: MovieLens = dataset(Path(data_folder) / "movielens-latest-small")
    identity = data.identity()
    assert (identity["ratings"], identity["items"], sum(identity["users"].values())) == (100_004, 9_066, 671)
    assert len(data.table.names) == 21  # year, 19 genres and none listed, of which at least ten films are
