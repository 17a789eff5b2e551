"""The wiring: components that do not fit are refused by name."""

import pytest

from metarun.config.errors import ConfigError
from metarun.core.types import Split, TaskShape, TaskSource
from metarun.engine.build import check_methods


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
