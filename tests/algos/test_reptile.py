"""Reptile against the paper's loop written with `torch.optim.Adam`, whose state lives on while weights are put back."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from metarun.config.registry import traits_of
from metarun.core.batch import Execution, unstack
from metarun.core.types import Episode, Examples, Theta
from metarun.engine.gradient import meta_gradient
from metarun.engine.loop import descend
from tests.algos.test_carried import SETTINGS
from tests.reference.plain import loss, predict
from tests.reference.reptile import WEIGHTS, minibatches
from tests.support.tiny import QUERIES, SHOTS, WAYS, algo_and_theta, episodes

EPSILON = (1.0, 0.7, 0.4, 0.1)  # of each outer step
UNCLIPPED = replace(SETTINGS, clip_norm=None)


def fresh(name: str, backbone: str, **changes: Any) -> tuple[Any, Theta]:
    """Without the noise that the generic tests put into Adam's state."""
    algo, theta = algo_and_theta(name, backbone, **changes)
    with torch.no_grad():
        for component in traits_of(algo).carried:
            for p in theta[component].values():
                p.zero_()
    return algo, theta


def adapt(adam: torch.optim.Adam, backbone: str, phi: Theta, support: Examples, steps: int, size: int) -> None:
    """Minimise in place."""
    for rows in minibatches(support.y, steps, size):
        adam.zero_grad()
        loss(predict(backbone, phi, support.x[rows]), support.y[rows]).backward()
        adam.step()


def literal(backbone: str, theta: Theta) -> tuple[Theta, list[Tensor], torch.optim.Adam]:
    """Leaves that the paper's loop trains, and their Adam as in the authors' code."""
    phi = {c: {name: p.detach().clone().requires_grad_() for name, p in theta[c].items()} for c in WEIGHTS}
    leaves = [p for params in phi.values() for p in params.values()]
    return phi, leaves, torch.optim.Adam(leaves, lr=0.1, betas=(0.0, 0.999))


def run(algo: Any, theta: Theta, batches: list[Episode], execution: Execution) -> None:
    """The trainer's outer steps, with `configs/optimizer/interpolation.yaml`."""
    optimizer = torch.optim.SGD([p for c in WEIGHTS for p in theta[c].values()], lr=1.0)
    for epsilon, tasks in zip(EPSILON, batches):
        optimizer.param_groups[0]["lr"] = epsilon
        _, _, gradient = meta_gradient(algo, theta, tasks, execution=execution)
        descend(theta, gradient, optimizer, UNCLIPPED, traits_of(algo).carried)


def assert_same(theta: Theta, leaves: list[Tensor], moments: list[Tensor], steps: float) -> None:
    ours = [p.detach() for component in WEIGHTS for p in theta[component].values()]
    torch.testing.assert_close(ours, [p.detach() for p in leaves], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close([p.detach() for p in theta["moments"].values()], moments, rtol=1e-9, atol=1e-15)
    assert theta["adam"]["steps"].item() == pytest.approx(steps, abs=1e-12)


@pytest.mark.parametrize("backbone", ["conv4_flat", "mlp"])
@pytest.mark.parametrize("execution", ["vmap", "loop"])
def test_one_task_per_step_is_algorithm_1_with_the_moments_of_the_authors_code(
    backbone: str, execution: Execution
) -> None:
    algo, theta = fresh("reptile", backbone, beta2=0.999)
    phi, leaves, adam = literal(backbone, theta)
    batches = [episodes(1, seed=seed) for seed in range(len(EPSILON))]
    run(algo, theta, batches, execution)
    for epsilon, tasks in zip(EPSILON, batches):
        start = [p.detach().clone() for p in leaves]
        adapt(adam, backbone, phi, unstack(tasks)[0].support, algo.inner_steps, algo.inner_batch)
        with torch.no_grad():
            for p, p0 in zip(leaves, start):
                p.copy_(p0 + epsilon * (p - p0))
    steps = len(EPSILON) * algo.inner_steps
    assert_same(theta, leaves, [adam.state[p]["exp_avg_sq"] for p in leaves], steps)


def test_several_tasks_start_from_the_same_moments_and_hand_on_their_mean() -> None:
    algo, theta = fresh("reptile", "conv4_flat", beta2=0.999)
    phi, leaves, adam = literal("conv4_flat", theta)
    batches = [episodes(3, seed=seed) for seed in range(len(EPSILON))]
    run(algo, theta, batches, "vmap")
    for epsilon, tasks in zip(EPSILON, batches):
        start, state = [p.detach().clone() for p in leaves], copy.deepcopy(adam.state_dict())
        ends, moments = [], []
        for task in unstack(tasks):
            adam.load_state_dict(copy.deepcopy(state))
            adapt(adam, "conv4_flat", phi, task.support, algo.inner_steps, algo.inner_batch)
            ends.append([p.detach().clone() for p in leaves])
            moments.append([adam.state[p]["exp_avg_sq"].clone() for p in leaves])
            with torch.no_grad():
                for p, p0 in zip(leaves, start):
                    p.copy_(p0)
        with torch.no_grad():
            for p, p0, *tasks_ends in zip(leaves, start, *ends):
                p.copy_(p0 + epsilon * (torch.stack(tasks_ends).mean(0) - p0))
        for p, *tasks_moments in zip(leaves, *moments):
            adam.state[p]["exp_avg_sq"] = torch.stack(tasks_moments).mean(0)
    steps = len(EPSILON) * algo.inner_steps
    assert_same(theta, leaves, [adam.state[p]["exp_avg_sq"] for p in leaves], steps)


def test_a_pass_shows_every_support_example_once_in_balanced_minibatches() -> None:
    algo, _ = algo_and_theta("reptile", "mlp", inner_batch=3, inner_steps=2 * SHOTS)
    support = unstack(episodes(1))[0].support
    batches = list(algo.minibatches(support))
    for batch in batches:
        assert sorted(batch.y.tolist()) == list(range(WAYS))
    for first in (0, SHOTS):
        seen = torch.cat([batch.x for batch in batches[first : first + SHOTS]]).flatten(1)
        torch.testing.assert_close(seen.sort(0).values, support.x.flatten(1).sort(0).values)


def test_adaptation_keeps_no_graph_and_queries_teach_nothing() -> None:
    algo, theta = algo_and_theta("reptile", "conv4_flat")
    task, other = unstack(episodes(2))
    phi = algo.adapt(theta, task.support)
    assert not any(p.requires_grad for params in phi.values() for p in params.values())
    scalar, metrics = algo.task_loss(theta, task)
    mixed, _ = algo.task_loss(theta, task._replace(query=other.query))
    assert scalar.item() == mixed.item()
    assert 0 <= metrics["accuracy"].item() <= 1
    assert len(task.query.y) == WAYS * QUERIES
