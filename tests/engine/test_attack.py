"""Training on attacked queries: the attack is data, within its bounds, and of no strength changes nothing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from metarun.cli.compose import compose
from metarun.config.load import load_settings, resolve
from metarun.core.batch import Execution, unstack
from metarun.core.seeding import generator_for
from metarun.core.types import Episode, Examples
from metarun.datasets.preprocessing import Pictures
from metarun.engine.attack import Adversarial
from metarun.engine.build import Experiment
from metarun.engine.gradient import meta_gradient
from tests.conftest import TINY, Command
from tests.support.tiny import algo_and_theta, episodes, leaves

FORM = Pictures(16, 1, "squeeze", "lanczos")
TASKS = episodes(2)


def build(name: str, radius: float, **changes: Any) -> tuple[Adversarial, Any]:
    algo, theta = algo_and_theta(name, "conv4_strided", **changes)
    return Adversarial(algo, algo.spec, FORM, radius, step=0.05, steps=3), theta


def stack(tasks: list[Episode]) -> Episode:
    return Episode(*(Examples(*map(torch.stack, zip(*part))) for part in zip(*tasks)))


@pytest.mark.parametrize("name", ["protonet", "maml"])
@pytest.mark.parametrize("execution", ["vmap", "loop"])
def test_an_attack_of_no_strength_is_the_clean_training_bit_for_bit(name: str, execution: Execution) -> None:
    objective, theta = build(name, radius=0.0)
    found, clean = (meta_gradient(algo, theta, TASKS, execution=execution) for algo in (objective, objective.algo))
    assert torch.equal(found[0], clean[0])
    assert all(torch.equal(g, h) for g, h in zip(leaves(found[2]), leaves(clean[2])))


@pytest.mark.parametrize("name", ["protonet", "r2d2", "maml", "metal"])
@pytest.mark.parametrize("execution", ["vmap", "loop"])
def test_the_loss_is_that_of_attacked_queries(name: str, execution: Execution) -> None:
    objective, theta = build(name, radius=0.1)
    attacked = stack([objective.attack(theta, task) for task in unstack(TASKS)])
    x, before = attacked.query.x, TASKS.query.x
    assert float((x - before).abs().max()) <= 0.1 + 1e-12
    assert 0 <= float(x.min()) <= float(x.max()) <= 1
    assert torch.equal(attacked.support.x, TASKS.support.x)
    found = meta_gradient(objective, theta, TASKS, execution=execution)
    expected = meta_gradient(objective.algo, theta, attacked, execution=execution)
    torch.testing.assert_close([found[0], *leaves(found[2])], [expected[0], *leaves(expected[2])])
    assert found[0] > meta_gradient(objective.algo, theta, TASKS, execution=execution)[0]


def test_norm_layers_have_averages_of_attacked_tasks(place: Path) -> None:
    """Of the first layer, by a plain convolution: each task's support and its attacked queries are one batch."""
    words = [*TINY, "algo=protonet", "backbone=conv4_strided", "trainer.attack_radius=0.3", "eval.statistics_tasks=2"]
    experiment = Experiment.build(load_settings(resolve(compose(words))))
    theta, objective = experiment.draw_theta(), experiment.objective
    assert isinstance(objective, Adversarial)
    tasks = unstack(experiment.source.sample(2, generator_for(0, "statistics")))
    batches = [torch.cat([task.support.x, objective.attack(theta, task).query.x]) for task in tasks]
    weight = theta["backbone"]["convs.0.weight"]
    means = [torch.nn.functional.conv2d(x, weight, stride=2, padding=1).mean((0, 2, 3)) for x in batches]
    found = experiment.measure_statistics(theta)
    first = next(name for name in found if name.endswith(".mean"))
    torch.testing.assert_close(found[first], torch.stack(means).mean(0).detach(), rtol=1e-4, atol=1e-6)


def test_what_else_there_is_to_an_input_is_not_attacked() -> None:
    objective, theta = build("protonet", radius=0.1)
    objective = replace(objective, algo=Painted(objective.algo))  # type: ignore[arg-type]
    (task,) = unstack(episodes(1))
    support, query = (Examples(torch.cat([x, 7 * torch.ones_like(x)], 1), y) for x, y in task)
    attacked = objective.attack(theta, Episode(support, query)).query.x
    assert torch.equal(attacked[:, 1], query.x[:, 1])
    assert not torch.equal(attacked[:, 0], query.x[:, 0])


class Painted:
    """A method that reads the first channel of its inputs."""

    def __init__(self, algo: Any) -> None:
        self.algo = algo

    def adapt(self, theta: Any, support: Examples) -> Any:
        return self.algo.adapt(theta, Examples(support.x[:, :1], support.y))

    def predict(self, theta: Any, phi: Any, x: torch.Tensor) -> Any:
        return self.algo.predict(theta, phi, x[:, :1])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["dataset=sinusoid", "backbone=mlp"], "queries are attacked as pictures, and the inputs of this run are none"),
        (["algo=baseline", *TINY[:4]], "algo=baseline is trained on examples of all classes, and there are no queries"),
    ],
)
def test_what_cannot_be_attacked_is_told_before_training(metarun: Command, words: list[str], told: str) -> None:
    answer = metarun(*words, "trainer.attack_radius=0.1", "device=cpu")
    assert (answer.code, answer.err) == (2, f"metarun: trainer.attack_radius is 0.1: {told}\n")
