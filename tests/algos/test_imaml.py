"""The implicit gradient: against closed forms, finite differences, and a direct solve."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import vmap

from metarun.algos.imaml import conjugate_gradient
from metarun.config.errors import ConfigError
from metarun.config.registry import build
from metarun.config.traits import Kind
from metarun.core.batch import unstack
from metarun.core.types import Episode, Examples, FewShotAlgorithm, TaskSpec, Theta
from metarun.engine.build import build_few_shot
from metarun.engine.gradient import meta_gradient
from tests.reference.imaml import SETTINGS
from tests.support.tiny import algo_and_theta, episodes, leaves, plain_losses

INPUTS, CLASSES = 3, 4


def linear_model(kind: Kind, tasks: int, **changes: Any) -> tuple[FewShotAlgorithm, Theta, Episode]:
    """A last layer alone, on random points: least squares, or softmax regression. Its inner problem is smooth."""
    spec = TaskSpec(kind, (INPUTS,), 1 if kind == "regression" else CLASSES)
    network = build("backbone", {"name": "mlp", "hidden": [], "batch_norm": False}, input_shape=(INPUTS,))
    algo = build_few_shot({"name": "imaml", **SETTINGS, **changes}, network, spec)
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    def part() -> Examples:
        return Examples(normal(tasks, 8, INPUTS), normal(tasks, 8, 1) if kind == "regression" else labels)

    labels = torch.arange(CLASSES).repeat(2).expand(tasks, -1)
    theta = {c: {n: normal(*p.shape).requires_grad_() for n, p in params.items()} for c, params in algo.init().items()}
    return algo, theta, Episode(part(), part())


def test_least_squares_has_the_closed_form() -> None:
    """L_S = mean (A w - y)^2 with A = [x, 1]: H = 2 A'A / n, phi* = (H + lam)^-1 (2 A'y / n + lam theta), and the
    meta-gradient is d phi*/d theta = lam (H + lam)^-1 times the query gradient."""
    lam = 2.0
    algo, theta, tasks = linear_model("regression", 3, proximal=lam, inner_lr=0.15, inner_steps=80, cg_steps=8)
    loss, _, gradient = meta_gradient(algo, theta, tasks, execution="vmap")
    w = torch.cat([theta["head"]["weight"][0], theta["head"]["bias"]]).detach()
    expected, values = [], []
    for support, query in unstack(tasks):
        a, b = (torch.cat([part.x, torch.ones(len(part.x), 1, dtype=w.dtype)], 1) for part in (support, query))
        shrink = torch.linalg.inv(2 * a.T @ a / len(a) + lam * torch.eye(len(w), dtype=w.dtype))
        phi = shrink @ (2 * a.T @ support.y[:, 0] / len(a) + lam * w)
        residual = b @ phi - query.y[:, 0]
        values.append(residual.square().mean())
        expected.append(lam * shrink @ (2 * b.T @ residual / len(b)))
    found = torch.cat([gradient["head"]["weight"][0], gradient["head"]["bias"]])
    torch.testing.assert_close(loss, torch.stack(values).mean(), rtol=1e-10, atol=0)
    torch.testing.assert_close(found, torch.stack(expected).mean(0), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("steps", "exact"), [(80, True), (1, False)])
def test_softmax_regression_solved_to_convergence_agrees_with_finite_differences(steps: int, exact: bool) -> None:
    algo, theta, tasks = linear_model("classification", 2, proximal=1.0, inner_lr=0.3, inner_steps=steps)
    _, _, gradient = meta_gradient(algo, theta, tasks, execution="vmap")

    def change(p: Tensor, i: int) -> Tensor:
        """The derivative of the mean query loss in entry i of p."""
        sides = []
        for distance in (1e-5, -1e-5):
            with torch.no_grad():
                p.view(-1)[i] += distance
                sides.append(vmap(lambda task: algo.task_loss(theta, task)[0])(tasks).mean())
                p.view(-1)[i] -= distance
        return (sides[0] - sides[1]) / 2e-5

    for p, g in zip(leaves(theta), leaves(gradient)):
        difference = torch.stack([change(p, i) for i in range(p.numel())])
        assert torch.allclose(g.flatten(), difference, rtol=1e-6, atol=1e-9) is exact


def test_the_released_codes_operator_equals_a_direct_solve_of_it() -> None:
    damped = {"shift": 1.0, "damping": 10.0}
    algo, theta = algo_and_theta("imaml", "mlp", kind="regression", **damped)
    tasks = episodes(2, "regression")
    _, _, gradient = meta_gradient(algo, theta, tasks, execution="vmap")
    expected = torch.autograd.grad(plain_losses("imaml", "mlp", theta, tasks, **damped).mean(), leaves(theta))
    torch.testing.assert_close(leaves(gradient), list(expected), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("steps", [6, 50])
def test_conjugate_gradient_solves_and_stays_when_there_is_nothing_left(steps: int) -> None:
    root = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix = root @ root.T + torch.eye(6, dtype=torch.float64)
    for b in (torch.arange(6.0, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)):
        x = conjugate_gradient(lambda v: {"net": {"w": matrix @ v["net"]["w"]}}, {"net": {"w": b}}, steps)
        torch.testing.assert_close(x["net"]["w"], torch.linalg.solve(matrix, b), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("diagonal", "expected"),
    [
        ((2.0, -1.0), (2.0, 2.0)),  # the first step goes to (2, 2); along the next direction, (6, 12), it is negative
        ((2.0, -3.0), (1.0, 1.0)),  # negative along (1, 1) itself
    ],
)
def test_conjugate_gradient_stops_where_the_operator_is_not_positive(diagonal: list[float], expected: Any) -> None:
    """diag(diagonal) x = (1, 1)."""
    operator = torch.tensor(diagonal)
    x = conjugate_gradient(lambda v: {"net": {"w": operator * v["net"]["w"]}}, {"net": {"w": torch.ones(2)}}, 4)
    torch.testing.assert_close(x["net"]["w"], torch.tensor(expected))


def test_the_graph_does_not_grow_with_the_inner_steps() -> None:
    def size(node: Any) -> int:
        return 1 + sum(size(parent) for parent, _ in node.next_functions if parent is not None)

    task = unstack(episodes(1))[0]
    sizes = set()
    for steps in (1, 5):
        algo, theta = algo_and_theta("imaml", "conv4_flat", inner_steps=steps)
        sizes.add(size(algo.task_loss(theta, task)[0].grad_fn))
    assert len(sizes) == 1


def test_lambda_zero_is_for_meta_test_only() -> None:
    algo, theta, tasks = linear_model("classification", 1, proximal=0.0)
    task = unstack(tasks)[0]
    assert "accuracy" in algo.task_metrics(theta, task)
    with pytest.raises(ConfigError, match=r"algo.proximal is 0"):
        algo.task_loss(theta, task)
