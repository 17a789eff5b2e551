"""The wiring: components that do not fit are refused by name."""

import pytest
import torch

from metarun.cli.compose import compose
from metarun.config.errors import ConfigError
from metarun.config.load import load_settings, resolve
from metarun.core.types import Split, TaskShape, TaskSource
from metarun.engine.build import Experiment, check_methods
from tests.support.fake_cuda import FakeCuda


class Old:
    """A dataset as another package may have written it for an earlier protocol."""

    def prepare(self) -> None:
        pass

    def tasks(self, split: Split, shape: TaskShape) -> TaskSource:
        raise NotImplementedError

    def describe(self) -> str:
        return ""


def test_a_dataset_without_a_method_of_the_protocol_is_told_which() -> None:
    with pytest.raises(
        ConfigError, match=r"dataset=old: its class Old has no notes\(\), identity\(\), preprocessing\(\)"
    ):
        check_methods(Old(), "old")


def test_a_run_makes_its_gpu_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a graph would be recorded on another. `raw` has no weights that would have to be there."""
    cuda = FakeCuda(monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    settings = load_settings(resolve(compose(["algo=rl2", "dataset=bandit", "backbone=raw", "device=cuda:1"])))
    assert Experiment.build(settings).device == torch.device("cuda", 1)
    assert cuda.device == 1
