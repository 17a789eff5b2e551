"""A package of another's, once installed, adds its method: found by name, with its YAML, without any flag."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from metarun.cli import compose as compose_module
from metarun.cli import hydra_app
from metarun.cli.compose import compose, describe_options
from tests.conftest import TINY, Command

PLUGIN = Path(__file__).parents[1] / "plugin"


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for sys.path into which pip has installed the package, without a network."""
    pytest.importorskip("pip", reason="this environment has no pip to install with")
    folder = tmp_path_factory.mktemp("target")
    offline = ("--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check")
    command = [sys.executable, "-m", "pip", "install", "--quiet", *offline, "--target", str(folder), str(PLUGIN)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def installed(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes started now find the package."""
    before = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(target), *([before] if before else [])]))


@pytest.mark.integration
def test_its_method_trains_with_its_own_settings(metarun_process: Command, place: Path, installed: None) -> None:
    answer = metarun_process("algo=cosine_means", *TINY, "hydra.run.dir=run")
    assert (answer.code, answer.err) == (0, "")
    result = json.loads((place / "run/result.json").read_text(encoding="utf-8"))
    assert result["config"]["algo"] == {"name": "cosine_means", "scale": 10.0, "norm": "running"}
    assert result["training"]["steps"] == 4


@pytest.mark.integration
def test_its_method_passes_the_generic_checks(metarun_process: Command, installed: None) -> None:
    answer = metarun_process("check", "algo=cosine_means")
    assert (answer.code, answer.err) == (0, "")
    assert len(answer.out.splitlines()) == 8
    assert all(line.startswith("ok ") for line in answer.out.splitlines())


def test_it_is_listed_beside_metaruns(
    metarun_process: Command, installed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # a line each
    lines = metarun_process("list", "algo").out.splitlines()
    names = [line.split()[0] for line in lines[1:]]
    assert names.count("cosine_means") == names.count("maml") == 1
    assert "the direction of its mean" in lines[1 + names.index("cosine_means")]


def test_without_the_package_there_is_no_such_method(metarun: Command) -> None:
    answer = metarun("algo=cosine_means", *TINY)
    assert answer.code == 2
    assert answer.err.startswith("metarun: algo is 'cosine_means': choose from ")


def test_of_two_files_of_one_name_metaruns_own_counts(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = compose(["algo=maml"]).algo
    (place / "algo").mkdir()
    (place / "algo/maml.yaml").write_text("# Another\nname: maml\ninner_lr: 9\n")
    (place / "algo/theirs.yaml").write_text("# Theirs\nname: theirs\n")
    for module in (compose_module, hydra_app):
        monkeypatch.setattr(module, "config_folders", lambda: [place])
    assert compose(["algo=maml"]).algo == before
    assert compose(["algo=theirs"]).algo == {"name": "theirs"}
    described = describe_options("algo")
    assert described["theirs"] == "Theirs"
    assert described["maml"] != "Another"
