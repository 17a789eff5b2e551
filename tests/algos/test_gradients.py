"""The meta-gradient, for every registered algorithm and backbone: against plain autograd and finite differences."""

from typing import Any

import pytest
import torch

from metarun.config.registry import known, traits_of
from metarun.core.batch import Execution, map_tasks
from metarun.engine.gradient import meta_gradient
from tests.support.tiny import (
    BACKBONES,
    FEW_SHOT,
    PAIRS,
    REFERENCES,
    algo_and_theta,
    episodes,
    has_first_order,
    learns,
    leaves,
    plain_losses,
)

EXECUTIONS = ("vmap", "loop")


def test_every_registered_component_has_its_reference() -> None:
    assert sorted(REFERENCES) == FEW_SHOT
    assert known("backbone") == sorted(BACKBONES)


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize(("name", "backbone"), PAIRS)
def test_batched_meta_gradient_equals_a_loop_of_plain_autograd(name: str, backbone: str, execution: Execution) -> None:
    algo, theta = algo_and_theta(name, backbone)
    tasks = episodes(3, backbone=backbone)
    loss, _, gradient = meta_gradient(algo, theta, tasks, execution=execution)
    plain = plain_losses(name, backbone, theta, tasks)
    expected = torch.autograd.grad(plain.mean(), leaves(theta), materialize_grads=True)
    torch.testing.assert_close(loss, plain.mean().detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(leaves(gradient), list(expected), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("name", [name for name in FEW_SHOT if has_first_order(name)])
def test_first_order_meta_gradient_equals_plain_autograd(name: str, execution: Execution) -> None:
    algo, theta = algo_and_theta(name, "conv4_strided", first_order=True)
    tasks = episodes(2)
    _, _, gradient = meta_gradient(algo, theta, tasks, execution=execution)
    plain = plain_losses(name, "conv4_strided", theta, tasks, first_order=True)
    expected = torch.autograd.grad(plain.mean(), leaves(theta), materialize_grads=True)
    torch.testing.assert_close(leaves(gradient), list(expected), rtol=1e-9, atol=1e-12)
    exact = meta_gradient(algo_and_theta(name, "conv4_strided")[0], theta, tasks, execution=execution)[2]
    difference = max((a - b).abs().max() for a, b in zip(leaves(gradient), leaves(exact)))
    assert difference > 1e-4  # the second derivatives are not nothing


@pytest.mark.parametrize(("name", "backbone"), [pair for pair in PAIRS if getattr(REFERENCES[pair[0]], "EXACT", True)])
def test_meta_gradient_agrees_with_a_directional_finite_difference(name: str, backbone: str) -> None:
    algo, theta = algo_and_theta(name, backbone)
    tasks = episodes(2, backbone=backbone)
    _, _, gradient = meta_gradient(algo, theta, tasks, execution="vmap")
    generator = torch.Generator().manual_seed(2)
    direction = {
        component: {
            key: 0 * p
            if component in traits_of(algo).carried
            else torch.randn(p.shape, generator=generator, dtype=p.dtype)
            for key, p in params.items()
        }
        for component, params in theta.items()
    }

    def loss_at(distance: float) -> torch.Tensor:
        moved = {
            component: {key: p.detach() + distance * direction[component][key] for key, p in params.items()}
            for component, params in theta.items()
        }
        with torch.no_grad():
            losses: torch.Tensor = map_tasks(lambda task: algo.task_loss(moved, task)[0], tasks, "loop")
        return losses.mean()

    slope = sum((g * d).sum() for g, d in zip(leaves(gradient), leaves(direction)))
    step = 1e-7  # small enough that no ReLU or max-pool changes sides
    difference = (loss_at(step) - loss_at(-step)) / (2 * step)
    torch.testing.assert_close(slope, difference, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", [name for name in FEW_SHOT if learns(name, "regression")])
def test_regression_meta_gradient_equals_plain_autograd(name: str) -> None:
    algo, theta = algo_and_theta(name, "mlp", kind="regression")
    tasks = episodes(3, "regression")
    _, _, gradient = meta_gradient(algo, theta, tasks, execution="vmap")
    plain = plain_losses(name, "mlp", theta, tasks)
    expected = torch.autograd.grad(plain.mean(), leaves(theta), materialize_grads=True)
    torch.testing.assert_close(leaves(gradient), list(expected), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("name", FEW_SHOT)
def test_gradient_accumulated_over_chunks_equals_the_whole(name: str, execution: Execution) -> None:
    changes: dict[str, Any] = {"cg_steps": 3} if name == "imaml" else {}
    algo, theta = algo_and_theta(name, "conv4", **changes)
    tasks = episodes(5)
    whole = meta_gradient(algo, theta, tasks, execution=execution)
    for size in (1, 2, 5, 9):
        loss, metrics, gradient = meta_gradient(algo, theta, tasks, execution=execution, tasks_per_chunk=size)
        torch.testing.assert_close(loss, whole[0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(metrics, whole[1], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(leaves(gradient), leaves(whole[2]), rtol=1e-10, atol=1e-13)
