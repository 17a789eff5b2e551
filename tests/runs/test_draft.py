"""The draft of a test: read back bit for bit, and only by the test that wrote it."""

import time
from pathlib import Path

import pytest
import torch

from metarun.engine.evaluate import NOTHING, Scores
from metarun.runs.draft import Draft
from tests.conftest import TINY, Command

SCORES = Scores({"accuracy": torch.tensor([0.1, float("nan")]), "by_step": torch.rand(2, 3).double()}, (b"a", b"\xff"))


def test_a_draft_has_the_scores_bit_for_bit_and_the_time_they_took(tmp_path: Path) -> None:
    draft = Draft(tmp_path / "scores" / "test.draft", "key")
    assert draft.read() == (NOTHING, 0.0)
    draft.follow(time.perf_counter() - 100)(SCORES)
    found, seconds = draft.read()
    assert seconds == pytest.approx(100, abs=10)
    assert found.prints == SCORES.prints
    for name, values in SCORES.per_task.items():
        assert found.per_task[name].dtype == values.dtype
        assert torch.equal(found.per_task[name].nan_to_num(-1), values.nan_to_num(-1))


def test_a_damaged_draft_or_one_of_another_test_is_not_read(tmp_path: Path) -> None:
    draft = Draft(tmp_path / "test.draft", "key")
    draft.follow(0.0)(SCORES)
    assert Draft(draft.path, "other").read() == (NOTHING, 0.0)
    draft.path.write_bytes(draft.path.read_bytes()[:-100])
    assert draft.read() == (NOTHING, 0.0)


def test_no_draft_is_left_and_that_of_other_weights_is_not_gone_on_with(metarun: Command, place: Path) -> None:
    """The draft says that all tasks were solved, but by a model that is not this one."""
    assert metarun(*TINY, "hydra.run.dir=run").code == 0
    whole = (place / "run/scores/test.csv").read_bytes()
    (place / "run/result.json").unlink()
    lie = Scores({"accuracy": torch.ones(20), "accuracy_by_step": torch.ones(20, 2)}, (b"",))
    Draft(place / "run/scores/test.draft", "another model's").follow(0.0)(lie)
    assert metarun("resume", "run").code == 0
    assert (place / "run/scores/test.csv").read_bytes() == whole
    assert {file.suffix for file in (place / "run/scores").iterdir()} == {".csv", ".png"}
