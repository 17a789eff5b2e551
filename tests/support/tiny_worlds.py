"""Small worlds, and methods that act in them, in float64."""

from dataclasses import replace
from typing import Any

import torch

from metarun.config.registry import build
from metarun.core.inner import draw_theta
from metarun.core.seeding import generator_for
from metarun.core.types import TaskShape, TaskSpec, Theta, Trial, World
from metarun.datasets.bandit import Bandit
from metarun.datasets.cartpole import CartPole
from metarun.datasets.cheetah import Cheetah
from metarun.datasets.driving import Driving
from metarun.datasets.gridgame import GridGame
from metarun.datasets.navigation import Navigation
from metarun.datasets.pendulum import Pendulum
from metarun.datasets.tabular import Tabular
from metarun.engine.build import build_algorithm, what_is_read

CPU = torch.device("cpu")
WORLDS: dict[str, Any] = {
    "bandit": Bandit(arms=3, bonus=0.2, device=CPU),
    "tabular": Tabular(states=3, choices=2, horizon=3, device=CPU),
    "navigation": Navigation(horizon=4, device=CPU),
    "driving": Driving(horizon=60, device=CPU),
    "pendulum": Pendulum(horizon=60, torque=16.0, device=CPU),
    "cartpole": CartPole(horizon=100, device=CPU),
    "gridgame": GridGame(horizon=12, device=CPU),
}
BRIEF = {name: replace(w, horizon=2) if name != "bandit" else w for name, w in WORLDS.items()}  # for shapes alone
BRIEF["cheetah"] = Cheetah(goal="speed", horizon=2, device=CPU)  # MuJoCo need not be there


def spec_of(world: World, skipped: int, counted: int) -> TaskSpec:
    return TaskSpec("control", (world.observed,), world.actions, world=world, episodes=(skipped, counted))


def draw_trials(world: Any, tasks: int, seed: int = 0) -> Trial:
    """[T, ...] tasks with latent parameters in float64."""
    latent, salt = world.tasks("train", TaskShape(1, 1, 1)).sample(tasks, generator_for("trials", seed))
    return Trial({name: value.double() for name, value in latent.items()}, salt)


def actor_and_theta(name: str, world: World, episodes: tuple[int, int], **settings: Any) -> tuple[Any, Theta]:
    """A registered method on the world, and meta-parameters that require gradients."""
    spec, hidden = spec_of(world, *episodes), [4] if name == "maml_rl" else []
    values = {"name": "mlp", "hidden": hidden, "batch_norm": False}
    backbone = build("backbone", values, input_shape=what_is_read(name, spec).input_shape).double()
    algo = build_algorithm({"name": name, **settings}, backbone, spec)
    noise = generator_for("theta")

    def move(p: torch.Tensor) -> torch.Tensor:
        return (p.double() + 0.3 * torch.randn(p.shape, generator=noise, dtype=torch.float64)).requires_grad_()

    return algo, {c: {n: move(p) for n, p in params.items()} for c, params in draw_theta(algo, 0).items()}
