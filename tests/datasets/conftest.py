"""Fixtures that the tests of several datasets share."""

from pathlib import Path

import pytest

from tests.support.tiny_omniglot import offer_tiny_parts, write_zips


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """An Omniglot of a few characters."""
    offer_tiny_parts(monkeypatch)


@pytest.fixture
def root(tiny: None, tmp_path: Path) -> Path:
    """A folder with its two archives."""
    write_zips(tmp_path / "data")
    return tmp_path / "data"
