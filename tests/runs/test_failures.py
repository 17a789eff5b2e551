"""What is wrong with a run that is there already: one line, and nothing of it is lost."""

from pathlib import Path

import pytest
import torch
from filelock import FileLock

from metarun.engine import checkpoint
from tests.cli.test_errors import assert_told, write
from tests.conftest import TINY, Command


@pytest.mark.parametrize("command", ["resume", "evaluate"])
def test_a_folder_that_is_no_run(metarun: Command, place: Path, command: str) -> None:
    assert_told(metarun(command, "nowhere"), f"{place}/nowhere is not a run folder: it has no config.yaml")
    write(place / "half/config.yaml", "a: [")
    assert_told(metarun(command, "half"), f"{place}/half/config.yaml is damaged: ...")
    assert sorted(str(path.relative_to(place)) for path in place.rglob("*")) == ["half", "half/config.yaml"]


@pytest.fixture
def trained(metarun: Command, place: Path) -> Path:
    """A run that was trained but not yet tested, as after a power cut."""
    assert metarun(*TINY, "hydra.run.dir=run").code == 0
    (place / "run/result.json").unlink()
    return place / "run"


def test_a_damaged_checkpoint(metarun: Command, trained: Path) -> None:
    last = trained / "checkpoints/last.pt"
    whole = last.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"something else"):
        last.write_bytes(content)
        answer = metarun("resume", "run")
        assert_told(answer, f"the checkpoint {last} cannot be read, it is damaged or not metarun's: ...")
        assert answer.err.count("\n") == 1
        assert not (trained / "result.json").exists()
    last.write_bytes(whole)
    assert metarun("resume", "run").code == 0


def test_a_checkpoint_that_is_missing_or_of_another_model(metarun: Command, trained: Path, place: Path) -> None:
    best = trained / "checkpoints/best.pt"
    tensors, facts = checkpoint.load(best)
    before = sorted(place.rglob("*"))

    assert_told(metarun("evaluate", "run", "checkpoint=first.pt"), f"there is no checkpoint {place}/first.pt")
    tensors["theta"]["head"]["weight"] = torch.zeros(7, 4)
    checkpoint.save(place / "other.pt", tensors, facts)
    answer = metarun("evaluate", "run", "checkpoint=other.pt")
    assert_told(answer, f"the checkpoint {place}/other.pt is of another model: its weights have other names or shapes")
    best.unlink()
    assert_told(metarun("evaluate", "run"), f"there is no checkpoint {best}")
    assert {*place.rglob("*")} - {*before} == {place / "other.pt"}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("wayz=3", "eval.wayz: no such setting (did you mean ways?)"),
        ("ways=3", "eval.ways is 3: this model has a last layer for ways=5; ..."),
        ("ways=5,3", "eval.ways=5,3 is a list of values: give one"),
        ("ways", "eval.ways cannot be read: a setting is written name=value"),
        ("algo.inner_step=3", "eval.algo.inner_step: no such setting (did you mean inner_steps?)"),
        ("device=gpu", "device is 'gpu': choose from auto, ..."),
    ],
)
def test_a_mistake_in_what_differs_at_a_later_test(metarun: Command, trained: Path, asked: str, message: str) -> None:
    assert_told(metarun("evaluate", "run", asked), message)
    assert not (trained / "tests").exists()


def test_a_folder_that_holds_another_run(metarun: Command, trained: Path) -> None:
    before = (trained / "config.yaml").read_bytes()
    answer = metarun(*TINY, "hydra.run.dir=run", "seed=1")
    assert_told(answer, f"{trained} holds a run with other settings: choose another folder")
    assert (trained / "config.yaml").read_bytes() == before


def test_a_folder_where_another_process_is_at_work(metarun: Command, trained: Path) -> None:
    with FileLock(trained / ".lock"):
        answer = metarun("resume", "run")
    assert_told(answer, f"another process is at work in {trained}: wait for it, or change a setting")


def test_files_of_a_run_that_are_damaged(metarun: Command, trained: Path) -> None:
    write(trained / "result.json", "{")
    assert_told(metarun("resume", "run"), f"{trained}/result.json is damaged: ...")
    (trained / "result.json").unlink()
    (trained / "choices.json").unlink()
    assert_told(metarun("resume", "run"), f"{trained} is not a whole run folder: it has no choices.json")


# Packages that are not installed


def test_a_test_of_an_unfinished_run_says_so(metarun: Command, trained: Path) -> None:
    (trained / "result.json").unlink(missing_ok=True)
    answer = metarun("evaluate", "run")
    assert answer.code == 0, answer.err
    assert f"{trained} is not finished: this tests its checkpoint of step " in answer.out
