"""A run belongs to the data it has read, wherever a command is given and however the data is spelled."""

import hashlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import build_hook
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._pytree import tree_map

from metarun.cli.compose import compose
from metarun.cli.grammar import parse
from metarun.config.load import identity, load_settings, make_absolute, resolve
from metarun.core.machine import find_commit
from metarun.engine import checkpoint
from metarun.reports.collect import Run
from metarun.runs.folder import RunFolder
from metarun.runs.run import LONGEST, name_test
from tests.conftest import TINY, Command

SMALL = (
    "algo=protonet", "backbone=conv4", "backbone.filters=2", "dataset=folder", "dataset.path=pics",
    "dataset.image_size=16", "trainer.workers=1", "trainer.steps=2", "trainer.tasks_per_step=1", "eval.tasks=4",
    "eval.val_tasks=4", "ways=2", "queries=1", "device=cpu", "hydra.run.dir=run",
)  # fmt: skip
STEPS = ("trainer.steps=4", "trainer.eval_every=2", "trainer.log_every=2")


def write_pictures(root: Path, seed: int = 0) -> None:
    """Fifteen classes of four pictures of noise."""
    noise = np.random.default_rng(seed)
    for label in range(15):
        folder = root / f"class{label:02d}"
        folder.mkdir(parents=True)
        for i in range(4):
            Image.fromarray(noise.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(folder / f"{i}.png")


@pytest.fixture
def pics(place: Path) -> Path:
    write_pictures(place / "pics")
    return place / "pics"


def go_elsewhere(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To a folder that has other pictures under the same name."""
    write_pictures(place / "two" / "pics", seed=1)
    monkeypatch.chdir(place / "two")


def test_relative_and_absolute_spelling_of_a_path_give_one_run(place: Path) -> None:
    spellings = ("pics", "./pics", f"{place}/pics", "other/../pics")
    names = {compose(["dataset=folder", f"dataset.path={path}"]).hydra.run.dir for path in spellings}
    assert len(names) == 1
    assert compose(["dataset=folder", "dataset.path=others"]).hydra.run.dir not in names


def test_only_paths_are_made_absolute_and_a_published_sets_path_is_no_part_of_a_run(place: Path) -> None:
    values = {"data_dir": "d", "dataset": {"path": "~/p"}, "eval": {"checkpoint": "best-20"}}
    home = os.path.expanduser("~")
    assert make_absolute(values) == {**values, "data_dir": f"{place}/d", "dataset": {"path": f"{home}/p"}}
    address = {"dataset": {"path": "https://example.org/x"}, "eval": {"checkpoint": "sub/last.pt"}}
    assert make_absolute(address)["dataset"] == address["dataset"]
    assert make_absolute(address)["eval"] == {"checkpoint": f"{place}/sub/last.pt"}
    for name, counts in (("folder", True), ("miniimagenet", False), ("omniglot", False), ("clinc150", False)):
        one, other = (identity(resolve(compose([f"dataset={name}", f"dataset.path={path}"]))) for path in "ab")
        assert (one != other) == counts


def test_tasks_of_regression_have_no_ways_in_their_folder() -> None:
    assert "/maml-sinusoid-5s/" in compose(["dataset=sinusoid"]).hydra.run.dir
    assert "/maml-glyphs-5w1s/" in compose([]).hydra.run.dir


@pytest.mark.integration
def test_a_finished_run_is_not_shown_for_other_data(metarun: Command, pics: Path) -> None:
    assert metarun(*SMALL).code == 0
    again = metarun(*SMALL)
    assert (again.code, "is finished already" in again.out) == (0, True)
    shutil.rmtree(pics)
    assert "is finished already" in metarun(*SMALL).out  # a result stays true when its data is gone
    write_pictures(pics, seed=1)
    refused = metarun(*SMALL)
    assert refused.code == 2
    hashes = re.search(
        r"has read other data than dataset=folder holds now \(sha256 was (\w{12})\.\.\., is (\w{12})\.", refused.err
    )
    assert hashes is not None
    assert hashes[1] != hashes[2]
    assert refused.err.count("\n") == 1


@pytest.mark.integration
def test_a_stopped_run_goes_on_with_its_own_data_from_anywhere_and_with_no_other(
    metarun: Command, place: Path, pics: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert metarun(*SMALL, *STEPS).code == 0
    run = place / "run"
    whole = (run / "scores" / "test.csv").read_bytes()
    (run / "result.json").unlink()
    tensors, facts = checkpoint.load(run / "checkpoints" / "best.pt")
    checkpoint.save(run / "checkpoints" / "last.pt", tensors, facts)
    go_elsewhere(place, monkeypatch)
    assert metarun("resume", str(run)).code == 0
    assert (run / "scores" / "test.csv").read_bytes() == whole
    (run / "result.json").unlink()
    shutil.rmtree(pics)
    write_pictures(pics, seed=1)
    refused = metarun("resume", str(run))
    assert (refused.code, "has read other data" in refused.err) == (2, True)


@pytest.mark.integration
def test_evaluate_reads_the_runs_data_from_anywhere_and_other_data_only_if_told(
    metarun: Command, place: Path, pics: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert metarun(*SMALL).code == 0
    run = place / "run"
    own = json.loads((run / "result.json").read_text())
    go_elsewhere(place, monkeypatch)
    assert metarun("evaluate", str(run)).code == 0
    again = json.loads((run / "tests" / "again" / "result.json").read_text())
    assert again["dataset"] == own["dataset"]
    assert again["test"]["test"]["task_hash"] == own["test"]["test"]["task_hash"]
    assert metarun("evaluate", str(run), "dataset.path=pics").code == 0
    (told,) = (folder for folder in (run / "tests").iterdir() if folder.name != "again")
    assert json.loads((told / "result.json").read_text())["dataset"]["sha256"] != own["dataset"]["sha256"]
    shutil.rmtree(pics)
    write_pictures(pics, seed=1)
    refused = metarun("evaluate", str(run))
    assert (refused.code, "has read other data" in refused.err) == (2, True)
    assert refused.err.endswith("put the first data back, or name what to test on by dataset.path=...\n")
    (run / "result.json").write_text("{")
    assert "result.json is damaged" in metarun("evaluate", str(run), "dataset.path=pics", "tasks=3").err
    assert len(list((run / "tests").iterdir())) == 2  # it was not tested


@pytest.mark.integration
def test_a_run_is_not_shown_nor_continued_for_other_weights_than_it_started_from(metarun: Command, pics: Path) -> None:
    assert metarun(*SMALL).code == 0
    run, start = pics.parent / "second", pics.parent / "w.pt"
    tensors, facts = checkpoint.load(pics.parent / "run" / "checkpoints" / "last.pt")
    checkpoint.save(start, tensors, facts)
    words = (*SMALL, "init_from=w.pt", "eval.checkpoint=w.pt", f"hydra.run.dir={run}")
    assert metarun(*words).code == 0
    result = json.loads((run / "result.json").read_text())
    digest = hashlib.sha256(start.read_bytes()).hexdigest()
    assert result["files"] == {"init_from": digest, "eval.checkpoint": digest}
    checkpoint.save(start, tree_map(lambda p: p + 1 if isinstance(p, torch.Tensor) else p, tensors), facts)
    for finished in (True, False):
        for asked in (
            words,
            ("resume", str(run)),
            *([("evaluate", str(run), "tasks=3")] if finished else []),
            ("--multirun", *words, "hydra.sweep.dir=.", "hydra.sweep.subdir=second"),
        ):
            refused = metarun(*asked)
            assert refused.code == (1 if "--multirun" in asked else 2)
            name = "eval.checkpoint" if "evaluate" in asked else "init_from"
            assert f"has read another file than {name}={start} is now (sha256 was {digest[:12]}..." in refused.err
        if finished:
            start.rename("gone.pt")
            assert "is finished already" in metarun(*words).out  # a result stays true when the file is gone
            Path("gone.pt").rename(start)
            (run / "result.json").unlink()


def test_a_test_is_named_by_its_settings_and_never_longer_than_a_file_system_allows() -> None:
    assert name_test([]) == "again"
    assert name_test(["eval.ways=3", "device=cpu"]) == "ways=3-device=cpu"
    long = [name_test([f"dataset.path=/{'x' * 300}/{end}"]) for end in "ab"]
    assert all(len(name.encode()) <= LONGEST for name in long)
    assert long[0] != long[1]


@pytest.mark.integration
def test_a_reports_command_can_be_run(metarun: Command, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pictures(place / "own, 'and' more" / "pics")
    conf = place / "conf"
    (conf / "experiment").mkdir(parents=True)
    (conf / "experiment" / "mine.yaml").write_text("# @package _global_\neval:\n  tasks: 5\n")
    monkeypatch.chdir(place / "own, 'and' more")
    settings = [text for text in SMALL if not text.startswith("hydra")]
    assert metarun("--config-dir", "../conf", "experiment=mine", *settings).code == 0
    (folder,) = Path("outputs").glob("*/*/")
    command = Run.read(folder).command
    assert command is not None
    (place / "empty").mkdir()
    monkeypatch.chdir(place / "empty")
    words = subprocess.run(["bash", "-c", f"printf '%s\\n' {command}"], capture_output=True, text=True, check=True)
    assert parse(words.stdout.splitlines()[2:])
    assert metarun(*words.stdout.splitlines()[1:], "device=cpu").code == 0
    (again,) = Path("outputs").glob("*/*/")
    assert (again.parent.name, again.name) == (folder.parent.name, folder.name)
    assert RunFolder(again).result() is not None


def test_the_commit_is_that_of_the_code_and_not_of_what_surrounds_it(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        done = subprocess.run(["git", *identity, *words], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    package = tmp_path / "venv" / "metarun"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (tmp_path / "own.py").touch()
    git("init", "-q")
    git("add", "own.py")
    git("commit", "-qm", "theirs")
    assert find_commit(package) is None
    (package / "commit.txt").write_text("a" * 40 + "\n")
    assert find_commit(package) == "a" * 40
    git("add", "venv")
    git("commit", "-qm", "ours")
    assert find_commit(package) == git("rev-parse", "HEAD")
    (package / "__init__.py").write_text("changed = 1\n")
    assert find_commit(package) == git("rev-parse", "HEAD") + "-dirty"

    copy = tmp_path / "copy"  # of the sources, which this repository does not track
    copy.mkdir()
    (copy / "pyproject.toml").touch()
    assert build_hook.find_commit(str(copy)) is None
    git("add", "copy")
    git("commit", "-qm", "sources")
    assert build_hook.find_commit(str(copy)) == git("rev-parse", "HEAD") + "-dirty\n"


def test_a_run_from_before_there_was_a_setting_is_still_the_same_run() -> None:
    now = resolve(compose([]))
    before = {key: value for key, value in now.items() if key != "init_from"}
    before["trainer"] = {key: value for key, value in now["trainer"].items() if not key.startswith("attack_")}
    assert load_settings(before) == load_settings(now)
    assert identity(before) == identity(now)
    assert identity(before) != identity({**now, "init_from": "best.pt"})
    assert identity(before) != identity(resolve(compose(["trainer.attack_radius=0.1"])))


@pytest.mark.integration
def test_a_run_keeps_the_execution_that_it_once_chose(metarun: Command, place: Path) -> None:
    """A sitting that ended before the first checkpoint has left its choice, which is not the one of a short run."""
    chosen = {"execution": "loop", "tasks_per_chunk": None, "channels_last": True}
    folder = RunFolder(place / "run")
    with folder.lock(), folder.start(resolve(compose([*TINY, "hydra.run.dir=run"])), {"algo": "maml"}):
        folder.keep_plan(chosen)
    answer = metarun(*TINY, "hydra.run.dir=run")
    assert answer.code == 0, answer.err
    result = folder.result()
    assert result is not None
    assert result.training.plan == chosen == folder.plan()
    assert "plan" not in folder.choices()
    weights = checkpoint.load(folder.last)[0]["theta"]["backbone"].values()
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in weights if w.dim() == 4)
