"""What a dataset declares in its source is what its tasks say."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from metarun.config.registry import traits_of
from metarun.config.traits import DatasetTraits
from metarun.core.types import Dataset, TaskShape
from metarun.datasets.sinusoid import Sinusoid
from tests.support import tiny_assays, tiny_omniglot, tiny_pictures, tiny_texts


def pictures(root: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    tiny_pictures.write_folders(root)
    return tiny_pictures.images("folder", root)


def omniglot(root: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    tiny_omniglot.offer_tiny_parts(monkeypatch)
    tiny_omniglot.write_zips(root)
    return tiny_omniglot.dataset(root)


def texts(root: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    return tiny_texts.dataset("clinc150", tiny_texts.write_texts(root, "clinc150", 5, monkeypatch))


def assays(root: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    return tiny_assays.dataset(tiny_assays.write_assays(root))


def sinusoid(root: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    return Sinusoid(torch.device("cpu"))


@pytest.mark.parametrize("make", [pictures, omniglot, texts, assays, sinusoid])
def test_tasks_are_of_the_declared_kind_and_metric(
    make: Callable[[Path, pytest.MonkeyPatch], Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    dataset = make(tmp_path / "data", monkeypatch)
    traits = traits_of(dataset)
    assert isinstance(traits, DatasetTraits)
    spec = dataset.tasks("train", TaskShape(2, 2, 2)).spec
    assert (spec.kind, spec.metric) == (traits.kind, traits.metric)
