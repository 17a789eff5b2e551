"""A person's own texts, molecules, tasks of regression and features: what is read, how it is split, what is refused."""

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metarun.config.errors import ConfigError
from metarun.core.seeding import generator_for
from metarun.core.types import Episode, Split, TaskShape
from metarun.datasets.storage import arrays
from metarun.datasets.storage.ngrams import Bag
from tests.support.tiny_tables import (
    dataset,
    make_features,
    write_assays,
    write_csv,
    write_features,
    write_own,
    write_points,
)
from tests.support.tiny_texts import dataset as published_texts
from tests.support.tiny_texts import write_texts as write_published

KINDS = ["texts", "assays", "regression", "features"]
TEXTS = [("hello", "greet"), ("hi there", "greet"), ("bye", "leave"), ("see you", "leave"), ("how much", "ask")]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))


def draw(data: Any, split: Split, shape: TaskShape, tasks: int = 40) -> Episode:
    return data.tasks(split, shape).sample(tasks, generator_for("own", split))  # type: ignore[no-any-return]


def splits_of(data: Any) -> dict[str, list[str]]:
    """Split -> the names of its classes or tasks."""
    groups = data.packed.groups
    return {split: [groups[i].name for i in numbers] for split, numbers in data.split_groups().items()}


# What is read


@pytest.mark.parametrize(
    "encode",
    [
        lambda text: text.encode(),
        lambda text: text.encode("utf-8-sig"),
        lambda text: text.replace(",", ";").replace("\n", "\r\n").encode("utf-16"),
        lambda text: text.replace(",", "\t").encode("utf-16-le"),
    ],
)
def test_a_table_is_the_same_in_every_encoding_and_with_every_delimiter(
    encode: Callable[[str], bytes], tmp_path: Path
) -> None:
    plain = "Utterance,Intent\n" + "".join(f"{text},{label}\n" for text, label in TEXTS)
    (tmp_path / "one.csv").write_text(plain)
    (tmp_path / "other.csv").write_bytes(encode(plain))
    one, other = (dataset("texts", tmp_path / name).identity() for name in ("one.csv", "other.csv"))
    assert one == other
    assert (one["texts"], one["distinct"]) == (5, 5)


def test_json_lines_are_read_as_a_table_is(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", [("text", "label"), *TEXTS])
    lines = tmp_path / "t.jsonl"
    rows = [json.dumps({"label": label, "more": [1, {}], "text": text}, ensure_ascii=False) for text, label in TEXTS]
    lines.write_text("\n".join([rows[0], "", *rows[1:]]) + "\n")
    assert dataset("texts", lines).identity() == dataset("texts", table).identity()


def test_the_published_set_as_a_table_gives_the_same_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published = published_texts("banking77", write_published(tmp_path / "set", "banking77", 3, monkeypatch))
    found = published.find().listing
    rows = [(e.name, name, split) for split, part in found.items() for name, held in part.items() for e in held]
    own = dataset("texts", write_csv(tmp_path / "own.csv", [("text", "label", "split"), *rows]))
    for split in ("train", "val", "test"):
        for one, other in zip(draw(published, split, TaskShape(5, 1, 2)), draw(own, split, TaskShape(5, 1, 2))):
            assert torch.equal(one.x, other.x)
            assert torch.equal(one.y, other.y)
    assert own.identity()["sha256"] == published.identity()["sha256"]


def test_a_wide_table_and_a_long_one_hold_the_same_assays(tmp_path: Path) -> None:
    wide = dataset("assays", write_assays(tmp_path / "wide.csv"))
    header, *lines = (tmp_path / "wide.csv").read_text().splitlines()
    names = header.split(",")[1:]
    cells = [line.split(",") for line in lines]
    long = [(row[0], name, row[1 + a]) for a, name in enumerate(names) for row in cells if row[1 + a]]
    other = dataset("assays", write_csv(tmp_path / "long.csv", [("SMILES", "assay_id", "active"), *long]))
    assert wide.identity() == other.identity()
    for split in ("train", "test"):
        pair = (draw(data, split, TaskShape(2, 4, 4)) for data in (wide, other))
        assert all(torch.equal(one.x, two.x) and torch.equal(one.y, two.y) for one, two in zip(*pair))


@pytest.mark.parametrize("continuous", [False, True])
def test_a_molecule_has_what_was_measured_in_its_assay(continuous: bool, tmp_path: Path) -> None:
    values = "continuous" if continuous else "binary"
    data: Any = dataset("assays", write_assays(tmp_path / "a.csv", continuous=continuous), values=values, width=40)
    names = [f"C{'N' * (i % 7)}O{i}" for i in range(60)]
    number = {tuple(row): i for i, row in enumerate(Bag([2, 3, 4], False, 40).encode(names, "molecules").tolist())}
    sampler = data.tasks("train", TaskShape(2, 6, 10))
    assert (sampler.spec.kind, sampler.spec.output_size) == (("regression", 1) if continuous else ("classification", 2))
    support, query = sampler.sample(20, generator_for("own"))
    train = data.split_groups()["train"]
    for assay, *parts in zip(
        sampler.draw_classes(20, generator_for("own"))[:, 0], support.x, query.x, support.y, query.y
    ):
        a = int(data.packed.groups[train[assay]].name.removeprefix("assay"))
        molecules = [number[tuple(row)] for row in torch.cat(parts[:2]).tolist()]
        found = torch.cat(parts[2:]).flatten().tolist()
        assert len(set(molecules)) == 16
        assert all((a + i) % 11 for i in molecules)  # those were not measured
        assert found == pytest.approx([(a + i) / 7 if continuous else (a + i + 1) % 2 for i in molecules])


def test_columns_of_words_are_no_assays_and_words_may_say_what_is_active(tmp_path: Path) -> None:
    rows = [("SMILES", "name", "tox", "bind"), ("CC", "x", "active", "TRUE"), ("CO", "y", "inactive", "NaN")]
    found = dataset("assays", write_csv(tmp_path / "a.csv", [*rows, ("CN", "z", "", "0")])).find()
    assert found.notes == ["columns without values are no assays: name"]
    held = {name: [(e.name, e.values) for e in examples] for name, examples in found.listing[None].items()}
    assert held == {"tox": [("CC", (1.0,)), ("CO", (0.0,))], "bind": [("CC", (1.0,)), ("CN", (0.0,))]}


def test_points_of_a_task_have_their_values(tmp_path: Path) -> None:
    data = dataset("regression", write_points(tmp_path / "p.csv"))
    support, query = draw(data, "test", TaskShape(5, 3, 4))
    slopes = torch.cat([support.y, query.y], 1) / torch.cat([support.x, query.x], 1)
    assert (support.x.shape, query.y.shape) == ((40, 3, 1), (40, 4, 1))
    allowed = {int(name.removeprefix("t")) for name in splits_of(data)["test"]}
    for task in slopes.flatten(1):
        (slope,) = {round(value) for value in task[~task.isnan()].tolist()}
        assert slope in allowed
    assert all(len(set(task.flatten().tolist())) == 7 for task in torch.cat([support.x, query.x], 1))


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: {"features": arrays["embeddings"].astype(np.float64), "y": arrays["labels"]},
        lambda arrays: {**arrays, "embeddings": arrays["embeddings"].astype(np.float16), "files": arrays["labels"]},
    ],
)
def test_features_are_read_under_their_usual_names_and_in_every_precision(
    change: Callable[[dict[str, Any]], dict[str, Any]], tmp_path: Path
) -> None:
    np.savez_compressed(tmp_path / "other.npz", **change(make_features()))
    one, other = dataset("features", write_features(tmp_path / "one.npz")), dataset("features", tmp_path / "other.npz")
    assert one.identity() == other.identity()
    for x, y in draw(one, "train", TaskShape(5, 2, 3)):
        assert (x.dtype, x.shape[2:]) == (torch.float32, (6,))
        assert all(len(set(task[labels == k, 0].tolist())) == 1 for task, labels in zip(x, y) for k in range(5))


# Splits


@pytest.mark.parametrize("name", KINDS)
def test_without_a_split_whole_classes_and_tasks_are_drawn_and_it_is_said(name: str, tmp_path: Path) -> None:
    file = write_own(name, tmp_path)
    data = dataset(name, file)
    parts = splits_of(data)
    groups = len(data.packed.groups)
    assert [len(parts[split]) for split in ("train", "val", "test")] == [groups * share // 10 for share in (6, 2, 2)]
    assert len({label for part in parts.values() for label in part}) == groups
    assert data.notes()[0] == f"split: drawn by dataset.split_seed, {file.name} says none"
    assert splits_of(dataset(name, file, split_seed=2)) != parts
    assert data.describe().count(" in all") == 3
    assert str(file) in data.describe()


@pytest.mark.parametrize("spelling", ["column", "files"])
def test_a_split_that_is_given_is_kept(spelling: str, tmp_path: Path) -> None:
    words = {"hello": "Training", "bye": "TEST", "how much": "test"}
    rows = [(text, f"of {text}", word) for text, word in words.items()]
    if spelling == "column":
        path = write_csv(tmp_path / "own.csv", [("text", "label", "Set"), *rows])
    else:
        path = tmp_path / "own"
        for word in ("Training", "TEST"):
            write_csv(
                path / f"{word}.csv", [("text", "label"), *(row[:2] for row in rows if row[2].upper() == word.upper())]
            )
    data = dataset("texts", path, split_fractions=[0.5, 0.0, 0.5])
    assert splits_of(data) == {"train": ["of hello"], "val": [], "test": ["of bye", "of how much"]}
    where = "own.csv, column split" if spelling == "column" else "Training.csv, TEST.csv"
    assert data.notes() == [f"split: {where}; val: drawn from train's classes by dataset.split_seed"]


def test_features_may_have_an_array_of_splits(tmp_path: Path) -> None:
    labels = np.arange(30).repeat(12)
    words = np.array(["train", "val", "test"])[labels % 3]
    data = dataset("features", write_features(tmp_path / "f.npz", splits=words))
    wanted = {split: [f"class{c}" for c in range(k, 30, 3)] for k, split in enumerate(("train", "val", "test"))}
    assert splits_of(data) == wanted


def test_a_class_in_two_splits_and_equal_texts_are_told(tmp_path: Path) -> None:
    rows = [
        ("text", "label", "split"),
        ("a", "x", "train"),
        ("b", "x", "train"),
        ("a", "y", "test"),
        ("c", "x", "test"),
    ]
    notes = dataset(
        "texts", write_csv(tmp_path / "t.csv", [*rows, ("b", "x", "train")]), split_fractions=[0.5, 0, 0.5]
    ).notes()
    assert notes[1:] == [
        "1 class in both train and test, for example x: the test is not of new classes",
        "texts under two labels: 1, for example 'a' (x, y)",
        "equal texts across train and test: 1, for example 'a'",
        "equal texts within train: 1, for example 'b'",
    ]


def test_molecules_measured_again_and_those_of_training_are_told(tmp_path: Path) -> None:
    rows = [("smiles", "assay", "value", "split")]
    rows += [(s, "one", v, "train") for s, v in (("CC", "1"), ("CC", "0"), ("CO", "0"), ("CO", "0"))]
    rows += [(s, "two", v, "test") for s, v in (("CC", "1"), ("CN", "0"), ("CS", "0"))]
    notes = dataset("assays", write_csv(tmp_path / "a.csv", rows), split_fractions=[0.5, 0.0, 0.5]).notes()
    assert notes[1:] == [
        "2 molecules several times in one assay, 1 of them with different values",
        "1 of 3 molecules in the test are in training too: only its assays are new",
    ]


@pytest.mark.parametrize("name", KINDS)
def test_what_is_read_anew_after_a_change_of_the_same_size(name: str, tmp_path: Path) -> None:
    file = write_own(name, tmp_path)
    before = dataset(name, file).identity()["sha256"]
    if name == "features":
        changed = make_features()["embeddings"]
        changed[100, 0] = -1
        write_features(file, embeddings=changed)
    else:
        lines = file.read_bytes().decode().splitlines(keepends=True)
        swapped = {"texts": ("word", "sord"), "assays": (",1,", ",0,"), "regression": (".1", ".9")}[name]
        lines[len(lines) // 2] = lines[len(lines) // 2].replace(*swapped, 1)
        size = file.stat().st_size
        file.write_bytes("".join(lines).encode())
        assert file.stat().st_size == size
    assert dataset(name, file).identity()["sha256"] != before


# What is refused


def refuse(name: str, path: Path | None, told: str, **changes: Any) -> None:
    with pytest.raises(ConfigError) as error:
        dataset(name, path, **changes).prepare()
    assert "\n" not in str(error.value)
    assert re.search(told, str(error.value)), error.value


BAD_TABLES = {
    "no column": ("texts", "sentence,kind\nhello,greet\n", r"must name the columns text,label, and is 'sentence,kind'"),
    "no label": ("texts", "text,label\nhello,greet\nbye,\n", r"own.csv: line 3 has no label"),
    "no text": ("texts", 'text,label\n"",greet\n', r"own.csv: line 2 has no text"),
    "twice": ("texts", "text,label,Label\na,b,c\n", r"two columns have the name 'label'"),
    "half": ("texts", "text,label,split\na,b,train\n", r"has own.csv, column split and no test: add what is missing"),
    "word": ("texts", "text,label,split\na,b,seen\n", r"line 2 has the split 'seen': it must be train, val or test"),
    "comma": ("texts", "text,label\nhello, you,greet\n", r"line 2 has 3 cells, and the header 2: put a text that"),
    "quote": ("texts", 'text,label\na,b\n"hello,greet\nbye,leave\n', r"line 3 has a quotation mark that is not closed"),
    "two quotes": ("texts", 'text,label\n"hello,greet\na,b\n"bye,leave\n', r"line 2 has a quotation mark that is not"),
    "empty": ("texts", "", r"own.csv is empty"),
    "head": ("texts", "text,label\n", r"own.csv has no classes"),
    "value": ("assays", "smiles,a\nCC,6.5\n", r"line 2, column a has 6.5: it must be 1 .* dataset.values=continuous"),
    "not a number": ("assays", "smiles,a\nCC,1\nCO,<5\n", r"line 3, column a has '<5': it must be a number, or empty"),
    "no smiles": ("assays", "smiles,a\n,1\n", r"line 2 has no smiles"),
    "alike": ("assays", "smiles,a,b\nCC,1,1\nCO,1,0\n", r"1 assay without both active and inactive .* example a:"),
    "rows split": (
        "assays",
        "smiles,split,a\nCC,train,1\n",
        r"column split divides molecules, and metarun splits assays",
    ),
    "no y": ("regression", "task,x\na,1\n", r"must name the columns task,x,y, and is 'task,x'"),
    "no task": ("regression", "x,y\n1,2\n", r"must name the columns task,x,y, and is 'x,y'"),
    "nan": ("regression", "task,x,y\na,1,2\na,nan,2\n", r"line 3: x is nan, which is no finite number"),
    "too large": ("regression", "task,x,y\na,1,1e39\n", r"line 2: y is 1e39, which is no finite number"),
    "text": ("regression", "task,x,y\na,one,2\n", r"line 2: x is 'one', which is no number$"),
    "decimals": ("regression", "task;x;y\na;0,5;2\n", r"line 2: x is '0,5', which is no number: write decimals with a"),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_a_table_that_cannot_be_used_is_refused_with_the_line(case: str, tmp_path: Path) -> None:
    name, content, told = BAD_TABLES[case]
    (tmp_path / "own.csv").write_text(content)
    refuse(name, tmp_path / "own.csv", told)
    assert "unusable" in (described := dataset(name, tmp_path / "own.csv").describe()) or case == "alike", described


def test_an_infinite_measurement_is_refused(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "a.csv", [("smiles", "a"), ("CC", "1e999")])
    refuse("assays", file, r"line 2, column a has 1e999, which is no finite number", values="continuous")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"text": "a", "label"', r"own.jsonl: line 3 is damaged, it is no JSON"),
        ('["a", "b"]', r"own.jsonl: line 3 is \[\"a\", \"b\"\]: it must be an object"),
        ('{"text": "a", "label": null}', r"own.jsonl: line 3 has no label"),
        ('{"text": "a", "label": [1]}', r"own.jsonl: line 3: label is \[1\]: it must be one text or number$"),
        ('{"text": {"en": "a"}, "label": "b"}', r"line 3: text is \{\"en\": \"a\"\}: it must be one text or number$"),
        ("[" * 100_000, r"own.jsonl: line 3 is damaged"),
    ],
)
def test_a_damaged_line_of_json_is_named(line: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text('{"text": "a", "label": "b"}\n\n' + line + "\n")
    refuse("texts", tmp_path / "own.jsonl", told)


BAD_ARRAYS: dict[str, tuple[dict[str, Any], str]] = {
    "pickled": (
        {"labels": np.array([object()] * 360)},
        r"holds pickled objects, which could run code: save plain",
    ),
    "flat": ({"embeddings": np.zeros(360)}, r"embeddings are float64 \[360\]: they must be numbers, \[n, features\]"),
    "texts": ({"embeddings": np.full((360, 2), "a")}, r"embeddings are <U1 \[360, 2\]: they must be numbers"),
    "few labels": ({"labels": np.arange(3)}, r"labels is \[3\]: it must be \[360\]"),
    "one-hot": ({"labels": np.eye(360)}, r"labels is \[360, 360\]: it must be \[360\]"),
    "values": ({"labels": np.arange(360) / 2}, r"labels are float64: they must be integers or texts"),
    "nan": ({"embeddings": np.where(np.eye(360, 2), np.nan, 1)}, r"row 0 of the embeddings holds numbers that are not"),
    "large": ({"embeddings": np.full((360, 2), 1e300)}, r"row 0 of the embeddings holds numbers that are not finite"),
    "split": ({"splits": np.full(360, "seen")}, r"row 0 of splits is none of train, val and test"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_arrays_that_cannot_be_used_are_refused(case: str, tmp_path: Path) -> None:
    changes, told = BAD_ARRAYS[case]
    refuse("features", write_features(tmp_path / "f.npz", **changes), told)


def test_files_that_hold_no_arrays_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "f.npz"
    file.write_bytes(pickle.dumps({"embeddings": 1}))
    refuse("features", file, r"is no whole npz file")
    file.write_bytes(write_features(tmp_path / "whole.npz").read_bytes()[:-200])
    refuse("features", file, r"is no whole npz file")
    np.savez(file, vectors=np.ones((3, 2)))
    refuse("features", file, r"has no array embeddings: it has vectors")
    np.savez(file, embeddings=np.ones((3, 2)))
    refuse("features", file, r"has no array labels: it has embeddings")


def test_arrays_that_would_not_fit_the_memory_are_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrays, "free_memory", lambda device: 2**10)
    refuse("features", write_features(tmp_path / "f.npz"), r"f.npz takes 0.0 GiB, and 0.0 GiB of memory are free")


def test_the_examples_of_the_documentation_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its order: texts, molecules and points, and the program that writes features."""
    page = Path(__file__).parents[2].joinpath("docs/data.md").read_text(encoding="utf-8")
    tables = re.findall(r"^```text\n(.+?)^```", page, re.MULTILINE | re.DOTALL)
    for name, table in zip(("texts", "assays", "regression"), tables, strict=True):
        (tmp_path / "own.csv").write_text(table)
        groups = dataset(name, tmp_path / "own.csv").find().listing[None]
        sizes = {name: len(examples) for name, examples in groups.items()}
        assert (
            sizes
            == {
                "texts": {"card_arrival": 1, "exchange_rate": 1},
                "assays": {"NR-AR": 2, "SR-p53": 2},
                "regression": {"site a": 2, "site b": 1},
            }[name]
        )
    (program,) = re.findall(r"^```python\n(.+?)^```", page, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(program, {})
    found = dataset("features", tmp_path / "features.npz").identity()
    assert (found["classes"], found["examples"]) == ({"train": 24, "val": 8, "test": 8}, 400)


def test_files_of_different_width_are_refused(tmp_path: Path) -> None:
    for split, size in (("train", 4), ("test", 6)):
        write_features(tmp_path / "own" / f"{split}.npz", **make_features(size))
        columns = ["task", *(f"x{i}" for i in range(size)), "y"]
        write_csv(tmp_path / "tables" / f"{split}.csv", [columns, [split, *range(size), 1]])
    refuse("regression", tmp_path / "tables", r"its files differ in the number of columns x and y")
    refuse("features", tmp_path / "own", r"its files have embeddings of 4 and 6 numbers")


@pytest.mark.parametrize("name", KINDS)
def test_what_is_missing_or_unclear_is_told(name: str, tmp_path: Path) -> None:
    refuse(name, None, rf"dataset={name}: nothing at .*nowhere/{name}: set dataset.path to ")
    refuse(name, tmp_path / "gone", r"nothing at .*/gone: set dataset.path to")
    (tmp_path / "own.xlsx").write_bytes(b"PK")
    refuse(name, tmp_path / "own.xlsx", r"own.xlsx: it must be .*, a file that ends with \.")
    refuse(name, tmp_path, r"it is not clear which file in it is meant .* it has none")
    refuse(name, write_own(name, tmp_path), r"must be three numbers", split_fractions=[0.5, 0.5])


@pytest.mark.parametrize(
    ("name", "shape", "told"),
    [
        (
            "texts",
            TaskShape(5, 8, 5),
            r"18 of the 18 classes of train have fewer texts, class\d+ only 12: ask for fewer",
        ),
        ("texts", TaskShape(19, 1, 1), r"ways is 19: train has 18 classes"),
        ("features", TaskShape(5, 8, 5), r"18 of the 18 classes of train have fewer examples, class\d+ only 12"),
        ("regression", TaskShape(5, 8, 5), r"6 of the 6 tasks of train have fewer points, t\d only 12"),
        ("assays", TaskShape(2, 30, 30), r"6 of the 6 assays of train have fewer molecules, assay\d only 5\d"),
        ("assays", TaskShape(2, 1, 5), r"shots is 1: of an assay it counts all molecules"),
    ],
)
def test_tasks_larger_than_what_is_there_are_refused(name: str, shape: TaskShape, told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=told):
        dataset(name, write_own(name, tmp_path)).tasks("train", shape)  # type: ignore[attr-defined]


def test_small_classes_and_assays_of_one_kind_are_left_out_if_told(tmp_path: Path) -> None:
    rows = [(f"{label} {i}", label) for label, size in zip("abcdef", (1, 5, 5, 5, 5, 5)) for i in range(size)]
    file = write_csv(tmp_path / "t.csv", [("text", "label"), *rows])
    data: Any = dataset("texts", file, small_classes="skip", split_fractions=[1.0, 0.0, 0.0])
    assert len(data.tasks("train", TaskShape(5, 2, 2)).table) == 5
    with pytest.raises(ConfigError, match="ways is 6: 5 of the 6 classes of train are left"):
        data.tasks("train", TaskShape(6, 2, 2))
    content = write_assays(tmp_path / "a.csv").read_text().replace("assay9\n", "assay9,same\n")
    (tmp_path / "a.csv").write_text(re.sub(r"^(C.*)$", r"\1,1", content, flags=re.MULTILINE))
    skipped: Any = dataset("assays", tmp_path / "a.csv", small_classes="skip", split_fractions=[1.0, 0.0, 0.0])
    skipped.prepare()
    assert "1 assay left out, without both active and inactive molecules" in skipped.notes()
    assert len(skipped.tasks("train", TaskShape(2, 4, 4)).table) == 10
