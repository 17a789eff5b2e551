"""Methods that act, from the command to the result: rows of rules, workers, weights to start from, refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import metarun as library
from metarun.config.errors import ConfigError
from metarun.engine import checkpoint
from metarun.testing import check_algorithm
from tests.cli.test_errors import assert_told
from tests.conftest import Command

SHORT = (
    "trainer.steps=2",
    "trainer.eval_every=2",
    "trainer.log_every=1",
    "trainer.tasks_per_step=4",
    "eval.tasks=60",
    "eval.val_tasks=4",
    "device=cpu",
)
BANDIT = ("algo=rl2", "dataset=bandit", "shots=0", "queries=3", "algo.hidden=6", "algo.trials=3", *SHORT)
PLANE = ("algo=maml_rl", "dataset=navigation", "dataset.horizon=4", "shots=3", "queries=2", *SHORT)
RULES = {"known", "gittins", "ucb1", "thompson", "greedy", "random"}


def result_of(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return result


@pytest.mark.integration
def test_a_result_has_a_row_for_each_rule_on_the_same_tasks_and_says_how_the_policy_acts(
    metarun: Command, place: Path
) -> None:
    answer = metarun(*BANDIT, "trainer.workers=1", "hydra.run.dir=run")
    assert answer.code == 0, answer.err
    result = result_of(place / "run")
    assert result["headline"] == "total_return"
    assert result["test"].keys() == {"test", "untrained", *RULES}
    assert len({row["task_hash"] for row in result["test"].values()}) == 1
    for row in result["test"].values():
        assert len(row["return_by_episode"]["mean"]) == 3
        assert row["total_return"]["mean"] == pytest.approx(3 * row["return"]["mean"])
    assert "(3 episodes, 60 tasks, greedy actions)" in answer.out + answer.err
    assert "(3 episodes, 60 tasks, a rule)" in answer.out + answer.err
    assert {"return_by_episode.png", "regret.png"} <= {file.name for file in (place / "run/scores").iterdir()}
    sampled = metarun("evaluate", "run", "algo.greedy=false", "queries=2")
    assert "(2 episodes, 60 tasks, sampled actions)" in sampled.out
    assert metarun("report", "run").code == 0
    assert "(3 episodes" not in (place / "report/report.md").read_text(encoding="utf-8")
    assert "3 episodes" in (place / "report/report.md").read_text(encoding="utf-8")

    explained = metarun("explain", "run")
    hidden = "algo=rl2 learns no loss and no rate, and dataset=bandit does not show what happens in it"
    assert_told(explained, f"{hidden}: there is nothing to draw")
    assert_told(metarun("probe", "run"), "no probe can look at this run of control: ...")
    with pytest.raises(ConfigError, match=r"is of algo=rl2, which acts in a world: there are no examples to adapt to"):
        library.load(place / "run")


@pytest.mark.integration
@pytest.mark.parametrize("words", [BANDIT, PLANE], ids=["rl2", "maml_rl"])
def test_two_workers_train_the_same_policy_as_one(
    metarun_process: Command, place: Path, words: tuple[str, ...]
) -> None:
    for workers in (1, 2):
        done = metarun_process(*words, f"trainer.workers={workers}", f"hydra.run.dir={workers}")
        assert done.code == 0, done.err
    one, two = (checkpoint.load(place / f"{workers}/checkpoints/last.pt")[0]["theta"] for workers in (1, 2))
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("rl2", ()),
        ("rl2", ("algo.memory=fast_weights",)),
        ("rl2", ("algo.memory=ledger",)),
        ("rl2", ("dataset=navigation", "dataset.horizon=3", "backbone.hidden=[4]")),
        ("maml_rl", ()),
        ("maml_rl", ("dataset=navigation", "dataset.horizon=3", "algo.curvature=path")),
    ],
    ids=str,
)
def test_the_generic_checks_hold(place: Path, name: str, overrides: tuple[str, ...]) -> None:
    """Among them: a loop over tasks, vmap and chunks give one gradient, and a resumed training is bit-equal."""
    check_algorithm(name, *overrides)


@pytest.mark.integration
def test_training_starts_from_the_weights_of_a_checkpoint(metarun: Command, place: Path) -> None:
    assert metarun(*BANDIT, "trainer.workers=1", "hydra.run.dir=first").code == 0
    start = "init_from=first/checkpoints/last.pt"
    still = (start, "queries=5", "optimizer.lr=1e-30", "hydra.run.dir=second")
    assert metarun(*BANDIT, "trainer.workers=1", *still).code == 0
    one, two = (checkpoint.load(place / f"{run}/checkpoints/last.pt")[0]["theta"] for run in ("first", "second"))
    torch.testing.assert_close(one, two, rtol=0, atol=0)
    assert "is of another model" in metarun(*BANDIT, start, "dataset.arms=4", "hydra.run.dir=third").err
    assert not (place / "third").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("algo=rl2",), "algo=rl2 cannot learn classification: choose from ..."),
        (("algo=maml", "dataset=bandit"), "algo=maml cannot learn control: choose from maml_rl, rl2, rule"),
        (("algo=rule", "dataset=bandit"), "algo=rule learns nothing: test it beside a method that does"),
        (("algo=maml_rl", "dataset=navigation", "shots=0"), "shots is 0: an inner step needs episodes to learn from"),
        (
            ("algo=maml_rl", "dataset=bandit", "algo.curvature=path"),
            "algo.curvature is path: it needs ...",
        ),
        (
            ("algo=rl2", "dataset=navigation", "algo.memory=ledger"),
            "algo.memory is ledger: it has an account for each action...",
        ),
        (
            (*BANDIT, "algo.memory=ledger", "backbone.hidden=[4]"),
            "algo.memory is ledger: it reads what is seen as it is: backbone=raw",
        ),
        ((*BANDIT, "init_from=nothing.pt"), "init_from is ..."),
        (
            (*BANDIT, "eval.checkpoint=ensemble", "trainer.keep_best=2"),
            "eval.checkpoint is ensemble: it averages ...",
        ),
    ],
    ids=str,
)
def test_what_cannot_act_is_refused_in_one_line(
    metarun: Command, place: Path, words: tuple[str, ...], message: str
) -> None:
    assert_told(metarun(*words), message)
    assert not list(place.iterdir())


@pytest.mark.slow
@pytest.mark.integration
def test_rl2_nearly_reaches_the_optimum_of_bandits(metarun: Command, place: Path) -> None:
    """5 arms, 10 pulls: 6.660 is optimal, 5.8 a memoryless policy; half a minute on one core."""
    answer = metarun("experiment=rl2/bandit_k5n10", "trainer.steps=700", "trainer.workers=1", "hydra.run.dir=run")
    assert answer.code == 0, answer.err
    row = result_of(place / "run")["test"]["test"]["total_return"]
    assert row["mean"] > 6.5
