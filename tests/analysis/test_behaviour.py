"""Pictures of behaviour: what a camera sees is what happened, and what is drawn is what it saw."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from metarun.analysis.behaviour import Camera
from metarun.core.batch import unstack
from metarun.core.control import roll_out
from metarun.core.types import TaskShape, Trial
from tests.conftest import Command
from tests.support.tiny_worlds import WORLDS, draw_trials

PLANE = WORLDS["navigation"]
GOAL = Trial({"goal": torch.tensor([0.25, 0.0])}, torch.tensor(1))
SMALL = ("trainer.steps=1", "trainer.tasks_per_step=2", "eval.tasks=2", "eval.val_tasks=2", "trainer.workers=1")


def film(world: Any, task: Trial, rule: str, episodes: int) -> Camera:
    camera = Camera(world)
    roll_out(camera, task, camera.rule(rule, task.latent, episodes), episodes, 2)
    return camera


def test_a_camera_sees_every_moment_of_the_first_trajectory() -> None:
    camera = film(PLANE, GOAL, "straight", 3)
    assert len(camera.films) == 3
    places = torch.tensor([[0.0, 0.0], [0.1, 0.0], [0.2, 0.0], [0.25, 0.0], [0.25, 0.0]])
    for states in map(camera.develop, camera.films):
        torch.testing.assert_close(states, places)


def test_the_way_that_is_drawn_is_the_one_that_was_gone() -> None:
    axes = Figure().subplots()
    camera = film(PLANE, GOAL, "straight", 1)
    PLANE.draw(axes, GOAL.latent, camera.develop(camera.films[0]))
    assert np.asarray(axes.lines[0].get_xdata()).tolist() == pytest.approx([0, 0.1, 0.2, 0.25, 0.25])


@pytest.mark.parametrize(("name", "rule"), [("pendulum", "known"), ("cartpole", "known"), ("gridgame", "optimum")])
def test_the_end_that_is_drawn_is_where_the_episode_ends(name: str, rule: str) -> None:
    """The rod points up, the cart and the pole's end are above each other, the player stands at the door."""
    world = WORLDS[name].tasks("train", TaskShape(1, 1, 1)).world
    task = unstack(draw_trials(WORLDS[name], 3))[1]
    camera, axes = film(world, task, rule, 1), Figure().subplots()
    world.draw(axes, task.latent, camera.develop(camera.films[0]))
    x, y = (np.asarray(values, dtype=float) for values in axes.lines[-1].get_data())
    if name == "gridgame":
        assert [x.item(), y.item()] == [2, float(task.latent["door"])]
        return
    length = float(task.latent["length"] if name == "pendulum" else 2 * task.latent["half"])
    assert (x[1] - x[0], y[1] - y[0]) == pytest.approx((0, length), abs=0.1)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("words", "curves"),
    [
        (("algo=rl2", "shots=0", "algo.hidden=4", "dataset=gridgame", "dataset.horizon=3"), 2),
        (("algo=maml_rl", "shots=2", "backbone.hidden=[4]", "dataset=navigation", "dataset.horizon=3"), 1),
    ],
    ids=["rl2", "maml_rl"],
)
def test_explain_draws_and_animates_what_a_policy_does(
    metarun: Command, place: Path, words: tuple[str, ...], curves: int
) -> None:
    assert metarun(*words, *SMALL, "queries=2", "hydra.run.dir=run").code == 0
    answer = metarun("explain", "run")
    assert answer.code == 0, answer.err
    drawn = place / "run/explained"
    assert {file.name for file in drawn.iterdir()} == {"behaviour.png", "behaviour.gif"}
    with Image.open(drawn / "behaviour.png") as picture, Image.open(drawn / "behaviour.gif") as animation:
        assert picture.width == 3 * 240
        assert picture.height == 3 * animation.height
        assert getattr(animation, "n_frames", 1) > 1
    assert metarun("report", "run").code == 0
    page = (place / "report/report.html").read_text(encoding="utf-8")
    assert page.count('<img src="data:image/') == curves + 1
