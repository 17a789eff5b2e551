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
from tests.support.tiny_pictures import write_folders

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
def test_its_probe_looks_at_any_run(metarun_process: Command, place: Path, installed: None) -> None:
    answer = metarun_process("algo=protonet", *TINY, "eval.probes=[mirror]", "eval.probe_tasks=10", "hydra.run.dir=run")
    assert (answer.code, answer.err) == (0, "")
    first = (place / "run/probes/mirror.json").read_bytes()
    assert (place / "run/probes/mirror.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads(first)
    assert [row["queries"] for row in found["table"]] == ["as they are", "mirrored"]
    answer = metarun_process("probe", "run", "mirror")
    assert (answer.code, answer.err) == (0, "")
    assert (place / "run/probes/mirror.json").read_bytes() == first


@pytest.mark.integration
def test_its_method_passes_the_generic_checks(metarun_process: Command, installed: None) -> None:
    answer = metarun_process("check", "algo=cosine_means")
    assert (answer.code, answer.err) == (0, "")
    assert len(answer.out.splitlines()) == 10
    assert all(line.startswith("ok ") for line in answer.out.splitlines())


@pytest.mark.integration
def test_its_world_passes_the_generic_checks_and_a_policy_learns_in_it(
    metarun_process: Command, place: Path, installed: None
) -> None:
    answer = metarun_process("check", "dataset=corridor")
    assert (answer.code, answer.err) == (0, "")
    assert len(answer.out.splitlines()) == 8
    assert all(line.startswith("ok ") for line in answer.out.splitlines())
    size = ("shots=0", "queries=2", "dataset.steps=2", "algo.hidden=16", "algo.entropy=0.5", "optimizer.lr=0.01")
    length = ("trainer.steps=200", "trainer.tasks_per_step=16", "trainer.eval_every=200", "eval.tasks=100")
    answer = metarun_process("algo=rl2", "dataset=corridor", *size, *length, "trainer.workers=1", "hydra.run.dir=run")
    assert answer.code == 0, answer.err
    rows = json.loads((place / "run/result.json").read_text(encoding="utf-8"))["test"]
    told, learned = rows["told"]["return_by_episode"]["mean"], rows["test"]["return_by_episode"]["mean"]
    assert told == [3, 3]  # at the treasure after 2 of 4 steps
    assert learned[0] < 2.3  # half of the tasks are guessed right
    assert learned[1] > 2.7  # and then it is known


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
    assert answer.err.startswith("metarun: algo is 'cosine_means': the nearest of ")


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


SAME = """
import torch, metarun
from metarun.config.load import load_settings
from metarun.engine.build import Experiment
from metarun.engine.evaluate import draw_fixed_tasks
from metarun.core.batch import unstack
from metarun.runs.folder import RunFolder
from pathlib import Path
experiment = Experiment.build(load_settings(RunFolder(Path("run")).config()))
model = metarun.load("run")
kept = {tuple(row) for row in experiment.dataset.features.tolist()}
assert {tuple(row) for row in model.embed("pictures/test").tolist()} < kept  # bit for bit
scores = RunFolder(Path("run")).read_scores("test", "accuracy")
source = experiment.build_tester(experiment.plan_rows()["test"], "test").source
tasks = unstack(next(draw_fixed_tasks(source, 10, 0, "test")))
for score, (support, query) in zip(scores, tasks):
    found = model.adapt((support.x, support.y)).predict(query.x).labels
    assert abs(score - (torch.tensor(found) == query.y).double().mean()) < 1e-6
"""


@pytest.mark.integration
def test_its_encoder_gives_predictions_with_a_run_and_without_the_same_as_in_the_test(
    metarun_process: Command, place: Path, installed: None
) -> None:
    write_folders(place / "pictures")
    data = ("dataset=folder", "dataset.path=pictures", "encoder=colours")
    small = ("ways=2", "queries=2", "eval.tasks=10", "eval.val_tasks=5", "device=cpu")
    answer = metarun_process(*data, "algo=protonet", *small, "hydra.run.dir=run")
    assert (answer.code, answer.err) == (0, "")
    assert "note: encoder colours: classes seen in pre-training: no" in answer.out
    done = subprocess.run([sys.executable, "-c", SAME], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    result = json.loads((place / "run/result.json").read_text())
    alone = result | {"temperature": None, "sets": None}  # which only a run has
    (place / "run/result.json").write_text(json.dumps(alone))
    for first, table in (("run", "with.csv"), ("--encoder=colours", "without.csv")):
        answer = metarun_process("predict", first, "pictures/test", "pictures/test", "--to", table)
        assert (answer.code, answer.err) == (0, "")
    assert (place / "with.csv").read_text() == (place / "without.csv").read_text()
    trained = metarun_process(
        *data, "algo=maml", "backbone=mlp", *small, "trainer.steps=2", "trainer.workers=1", "hydra.run.dir=maml"
    )
    assert trained.code == 0, trained.err
    assert metarun_process("predict", "maml", "pictures/test", "pictures/test").code == 0
