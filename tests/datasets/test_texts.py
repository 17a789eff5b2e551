"""Text sets: their classes and n-grams on small generated copies, and the real ones where METARUN_DATA has them."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest
import torch

from metarun.config.errors import ConfigError
from metarun.config.registry import build
from metarun.core.seeding import generator_for
from metarun.core.types import TaskShape
from metarun.datasets.storage.known_sets import read_class_lists
from metarun.datasets.storage.ngrams import Bag, hash_ngram, list_ngrams
from tests.cli.test_errors import assert_told
from tests.conftest import Command
from tests.support.tiny_texts import OUT_OF_SCOPE, dataset, text, write_texts

NAMES = ["clinc150", "banking77"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# n-grams


def test_ngrams_of_words_and_characters_by_hand() -> None:
    assert list_ngrams("So, so?", [3], words=True) == ["so|", "so|so", " so", "so ", "o s"]
    assert list_ngrams("CC=C", [2, 3], words=False) == [" C", "CC", "C=", "=C", "C ", " CC", "CC=", "C=C", "=C "]


def test_rows_are_distinct_hashes_up_to_the_width() -> None:
    long, empty = Bag([2], False, 4).encode(["abcdefgh", "?"], "letters").tolist()
    assert long == [hash_ngram(ngram) for ngram in (" a", "ab", "bc", "cd")]
    assert empty == [hash_ngram(" ?"), hash_ngram("? "), 0, 0]
    assert all(0 < hash_ngram(ngram) < 2**31 for ngram in map(str, range(1000)))
    assert hash_ngram("ab") == 0x9E83486D & 0x7FFFFFFF  # the CRC-32 of "ab", as every zip file has it


def slow_counts(sentence: str, buckets: int) -> torch.Tensor:
    """How many distinct n-grams of a sentence in lower case without punctuation fall into each bucket."""
    words = sentence.split(" ")
    found = {word + "|" for word in words} | {words[i] + "|" + words[i + 1] for i in range(len(words) - 1)}
    padded = f" {sentence} "
    for start in range(len(padded)):
        for stop in range(start + 3, min(start + 4, len(padded)) + 1):
            found.add(padded[start:stop])
    counts = Counter(hash_ngram(ngram) % buckets for ngram in found)
    return torch.tensor([float(counts[bucket]) for bucket in range(buckets)], dtype=torch.float64)


def test_features_are_the_counted_ngrams_vectors() -> None:
    sentences = ["wake me at six", "wake me at six or at seven", "no"]
    network = build("backbone", {"name": "ngram", "buckets": 50, "features": 6, "length": 3.0}, input_shape=(80,))
    z = network.double()(torch.from_numpy(Bag([3, 4], True, 80).encode(sentences, "sentences")))
    for sentence, found in zip(sentences, z):
        total = slow_counts(sentence, 50) @ network.embedding.weight
        torch.testing.assert_close(found, 3 * total / total.norm())


def test_a_row_without_ngrams_is_zero_and_has_a_gradient() -> None:
    network = build("backbone", {"name": "ngram", "buckets": 5, "features": 3, "length": 2.0}, input_shape=(4,))
    z = network(torch.zeros(1, 4, dtype=torch.int32))
    (gradient,) = torch.autograd.grad(z.sum(), network.parameters())
    assert z.tolist() == [[0.0] * 3]
    assert gradient.isfinite().all()


# Sets


@pytest.mark.parametrize("name", NAMES)
def test_every_text_is_drawn_under_its_class_and_split(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = dataset(name, write_texts(tmp_path / "data", name, 3, monkeypatch))
    bag = Bag([3, 4], True, data.width)
    for split, labels in read_class_lists(name).items():
        rows = bag.encode([text(label, number) for label in labels for number in range(3)], split)
        owner = {tuple(row): i // 3 for i, row in enumerate(rows.tolist())}
        assert len(owner) == 3 * len(labels)
        sampler = data.tasks(split, TaskShape(len(labels), 1, 2))
        support, query = sampler.sample(2, generator_for("texts"))
        assert (sampler.spec.input_shape, sampler.spec.output_size) == ((data.width,), len(labels))
        for s, q in zip(support.x, query.x):
            classes = [owner[tuple(row)] for row in s.tolist()]
            assert sorted(classes) == list(range(len(labels)))
            assert [owner[tuple(row)] for row in q.tolist()] == [c for c in classes for _ in range(2)]
            assert len({tuple(row) for row in torch.cat([s, q]).tolist()}) == len(owner)


def test_what_is_out_of_scope_belongs_to_no_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = dataset("clinc150", write_texts(tmp_path / "data", "clinc150", 2, monkeypatch))
    unwanted = torch.from_numpy(Bag([3, 4], True, data.width).encode([OUT_OF_SCOPE], "nothing"))
    assert not (data.packed.rows == unwanted).all(1).any()


def test_identity_is_json_and_tells_other_texts_and_ngrams_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_texts(tmp_path / "data", "clinc150", 2, monkeypatch)
    one, narrow = dataset("clinc150", root).identity(), dataset("clinc150", root, width=20).identity()
    (root / "data_full.json").write_text((root / "data_full.json").read_text().replace("no. 1", "no. 2"))
    other = dataset("clinc150", root).identity()
    assert json.loads(json.dumps(one)) == one
    assert one["classes"] == {"train": 50, "val": 50, "test": 50}
    assert len({identity["sha256"] for identity in (one, narrow, other)}) == 3


@pytest.mark.parametrize("name", NAMES)
def test_what_is_missing_or_damaged_is_told(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"nothing at .*/data: put .* of https://github.com/"):
        dataset(name, tmp_path / "data").prepare()
    assert dataset(name, tmp_path / "data").describe().startswith("nothing at")
    data = dataset(name, write_texts(tmp_path / "data", name, 2, monkeypatch))
    assert f"test: {len(read_class_lists(name)['test'])} classes of 2 texts" in data.describe()
    *_, file = sorted(tmp_path.joinpath("data").iterdir())
    whole = file.read_text()
    file.write_text(
        whole.replace(text(read_class_lists(name)["test"][0], 0), "").replace(read_class_lists(name)["val"][0], "else")
    )
    with pytest.raises(ConfigError, match=r"is not whole, it has \d+ of \d+ classes and \d+ of \d+ texts"):
        data.prepare()
    file.write_text(whole.replace('"train"', '"rain"').replace("category", "kind"))
    with pytest.raises(ConfigError, match="is damaged"):
        data.prepare()
    assert "unusable" in data.describe()
    file.unlink()
    with pytest.raises(ConfigError, match=rf"{file.name} cannot be read \(No such file"):
        data.prepare()


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ("dataset=glyphs backbone=ngram", "backbone=ngram reads ngrams, this dataset has numbers: choose conv4, ..."),
        ("dataset=clinc150 backbone=mlp", "backbone=mlp reads numbers, this dataset has ngrams: choose ngram"),
    ],
)
def test_a_backbone_for_other_inputs_is_refused(
    wanted: str, told: str, metarun: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_texts(tmp_path / "data", "clinc150", 6, monkeypatch)
    asked = wanted.split()
    answer = metarun(*asked, *([f"dataset.path={path}"] if "clinc150" in wanted else []), "device=cpu")
    assert_told(answer, told)


# The real things


@pytest.mark.skipif("METARUN_DATA" not in os.environ, reason="METARUN_DATA is not set")
@pytest.mark.parametrize(("name", "texts", "least"), [("clinc150", 22_500, 150), ("banking77", 13_083, 75)])
def test_the_published_set_is_whole_and_most_texts_are_kept_entire(name: str, texts: int, least: int) -> None:
    root = Path(os.environ["METARUN_DATA"], "text-intents", name)
    if not root.is_dir():
        pytest.skip(f"{name} is not in METARUN_DATA")
    data = dataset(name, root)
    packed = data.packed
    assert len(packed.members) == texts
    assert min(group.size for group in packed.groups) == least
    assert (packed.rows[:, -1] == 0).float().mean() > 0.9
    told = data.describe()
    assert told.count("classes of") == 3
