"""The loop by itself: what it does in which order, and that stopping it changes nothing."""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import Tensor
from tqdm import tqdm

from metarun.core.types import Episode, Examples, Metrics, Theta
from metarun.engine.loop import train
from metarun.engine.state import NonFiniteLoss, Progress, State, Window
from tests.support.steps import make_settings

SETTINGS = make_settings(steps=12, log_every=3, eval_every=4, tasks_per_step=2)


def tasks_of(step: int) -> Episode:
    """Tasks whose queries are drawn from the step's own seed."""
    x = torch.rand(2, 1, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
    return Episode(Examples(x, x), Examples(x, x))


def pull(theta: Theta, tasks: Any) -> tuple[Tensor, Metrics, Theta]:
    """Half the squared distance to the tasks' mean, with its gradient by hand."""
    away = theta["net"]["w"].detach() - tasks.query.x.mean()
    return away.square() / 2, {"away": away}, {"net": {"w": away}}


def start(w: float = 5.0) -> State:
    theta = {"net": {"w": torch.tensor(w, dtype=torch.float64, requires_grad=True)}}
    optimizer = torch.optim.SGD([{"params": [theta["net"]["w"]], "initial_lr": 0.1}], lr=0.1, momentum=0.9)
    return State(theta, optimizer)


class Diary:
    """A log that remembers what it was told."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, str, dict[str, Any]]] = []

    def bar(self, step: int, steps: int) -> "tqdm[Any]":
        return tqdm(disable=True)

    def metrics(self, step: int, split: str, values: dict[str, Any]) -> None:
        self.lines.append((step, split, values))

    def close(self) -> None: ...


def run(
    state: State,
    save: Callable[[str], None] = lambda name: None,
    tasks: Callable[[int], Episode] = tasks_of,
    **changes: Any,
) -> Diary:
    """Train with a rate that falls to a half; a validation prefers w near 0."""
    diary, settings = Diary(), make_settings(**{**asdict(SETTINGS), **changes})
    train(
        state,
        tasks,
        pull,
        lambda step: 1 - step / 24,
        settings,
        validate=lambda: (-abs(state.theta["net"]["w"].item()), {"away": 0.0}),
        save=save,
        log=diary,
    )
    return diary


def descend_by_hand(steps: int) -> float:
    """SGD with momentum 0.9 and the falling rate, written out."""
    w, velocity = 5.0, 0.0
    for step in range(steps):
        velocity = 0.9 * velocity + (w - float(tasks_of(step).query.x.mean()))
        w -= 0.1 * (1 - step / 24) * velocity
    return w


def test_steps_are_those_of_the_hand_worked_descent() -> None:
    state = start()
    run(state)
    assert state.theta["net"]["w"].item() == pytest.approx(descend_by_hand(12), abs=1e-12)


def test_it_logs_validates_and_saves_where_the_settings_say() -> None:
    state, saved = start(), list[str]()
    diary = run(state, saved.append, steps=10)
    assert [(step, split) for step, split, _ in diary.lines] == [
        (3, "train"),
        (4, "val"),
        (6, "train"),
        (8, "val"),
        (9, "train"),
        (10, "train"),
        (10, "val"),
    ]
    assert saved.count("last") == 3
    assert saved[0] == "best"
    rates = [values["lr"] for _, split, values in diary.lines if split == "train"]
    assert rates == pytest.approx([0.1 * (1 - step / 24) for step in (2, 5, 8, 9)])
    first = torch.stack([pull(start_at, tasks_of(step))[0] for step, start_at in enumerate(trace(3))])
    assert diary.lines[0][2]["loss"] == pytest.approx(float(first.mean()), abs=1e-12)


def trace(steps: int) -> list[Theta]:
    """The weights before each step, by hand."""
    return [{"net": {"w": torch.tensor(descend_by_hand(step), dtype=torch.float64)}} for step in range(steps)]


@pytest.mark.parametrize("stop_at", [1, 5, 8, 11])
def test_a_stopped_training_goes_on_as_if_it_had_not_stopped(stop_at: int) -> None:
    """SIGTERM arrives while the tasks of a step are drawn; what is saved then is what a checkpoint holds."""
    whole = start()
    expected = run(whole)
    state, saved = start(), list[str]()

    def interrupt(step: int) -> Episode:
        if step == stop_at - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return tasks_of(step)

    diary = run(state, saved.append, interrupt)
    assert (state.progress.step, state.progress.stopped, saved[-1]) == (stop_at, "SIGTERM", "last")
    again = start()
    with torch.no_grad():
        again.theta["net"]["w"].copy_(state.theta["net"]["w"])
    again.optimizer.load_state_dict(state.optimizer.state_dict())
    again.progress = Progress(**json.loads(json.dumps(asdict(state.progress))))
    again.progress.stopped = None
    again.window = Window(**asdict(state.window))
    rest = run(again)
    assert torch.equal(again.theta["net"]["w"], whole.theta["net"]["w"])
    assert diary.lines + rest.lines == expected.lines
    assert (again.progress.best, again.progress.best_step) == (whole.progress.best, whole.progress.best_step)


def test_patience_ends_it() -> None:
    state = start(w=0.0)  # moves away from 0, so that no validation is better than the first
    run(state, steps=100, patience=2, eval_every=1)
    assert state.progress.step == 3


@pytest.mark.parametrize(("steps", "message"), [(12, "the loss is nan at step 3"), (2, "the loss is nan at step 2")])
def test_a_loss_that_is_not_finite_ends_it(steps: int, message: str) -> None:
    with pytest.raises(NonFiniteLoss, match=message):
        run(start(w=float("nan")), steps=steps)


def test_methods_that_anneal_are_told_the_step() -> None:
    seen = []

    def watch(theta: Theta, tasks: Any) -> tuple[Tensor, Metrics, Theta]:
        seen.append(int(theta["clock"]["step"]))
        loss, metrics, gradient = pull(theta, tasks)
        return loss, metrics, {**gradient, "clock": {"step": torch.zeros(())}}

    state = start()
    state.theta["clock"] = {"step": torch.tensor(7.0)}
    train(
        state,
        tasks_of,
        watch,
        lambda step: 1.0,
        make_settings(steps=3),
        validate=lambda: (0.0, {}),
        save=lambda name: None,
        log=Diary(),
        carried=("clock",),
    )
    assert seen == [0, 1, 2]
