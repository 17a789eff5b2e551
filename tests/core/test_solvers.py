"""The closed-form and the iterated solver, and the network of the paper that has them."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.functional import hessian

from metarun.config.errors import ConfigError
from metarun.config.registry import build
from metarun.core.solvers import logistic_regression, ridge
from metarun.core.types import Examples
from tests.support.tiny import algo_and_theta, episodes

SHAPES = [(4, 9), (9, 4), (5, 5)]  # fewer examples than features, more, as many
PENALTY = torch.tensor(0.3, dtype=torch.float64)


def problem(n: int, d: int, m: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """x [n, d], targets z [n, m], weights s [n, 1]."""
    generator = torch.Generator().manual_seed(0)
    x, z = (torch.randn(n, size, generator=generator, dtype=torch.float64) for size in (d, m))
    return x, z, 0.1 + torch.rand(n, 1, generator=generator, dtype=torch.float64)


def penalised_loss(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    """What LR-D2 minimises, for one class: x [n, d], y [n] in 0..1, w [d]."""
    return F.binary_cross_entropy_with_logits(x @ w, y, reduction="sum") + PENALTY / 2 * w.square().sum()


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_ridge_is_the_least_squares_solution_of_the_augmented_system(n: int, d: int) -> None:
    x, z, s = problem(n, d)
    rows = torch.cat([s.sqrt() * x, PENALTY.sqrt() * torch.eye(d, dtype=x.dtype)])
    right = torch.cat([s.sqrt() * z, torch.zeros(d, 2, dtype=x.dtype)])
    expected = torch.linalg.lstsq(rows, right).solution
    torch.testing.assert_close(ridge(x, s * z, PENALTY, s), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_ridge_and_its_gradient_equal_those_of_the_primal_form(n: int, d: int) -> None:
    """(X^T S X + penalty I)^-1 X^T S z by ordinary autograd, whichever form ridge has taken."""
    variables = [v.requires_grad_() for v in (*problem(n, d), PENALTY.clone())]
    x, z, s, penalty = variables
    primal = torch.linalg.inv(x.T @ (s * x) + penalty * torch.eye(d, dtype=x.dtype)) @ x.T @ (s * z)
    found = ridge(x, s * z, penalty, s)
    torch.testing.assert_close(found, primal, rtol=1e-10, atol=1e-12)
    direction = torch.randn(d, 2, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    gradients = [torch.autograd.grad((w * direction).sum(), variables) for w in (found, primal)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_each_iteration_is_a_newton_step(n: int, d: int) -> None:
    x, z, _ = problem(n, d)
    y = (z > 0).double()
    for column in range(2):
        w = torch.zeros(d, dtype=x.dtype)
        for iterations in range(1, 5):
            gradient = torch.func.grad(penalised_loss, argnums=2)(x, y[:, column], w)
            curvature = hessian(partial(penalised_loss, x, y[:, column]), w)
            w = w - torch.linalg.solve(curvature, gradient)
            found = logistic_regression(x, y, PENALTY, iterations)[:, column]
            torch.testing.assert_close(found, w, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_many_iterations_end_where_gradient_descent_does(n: int, d: int) -> None:
    x, z, _ = problem(n, d, m=1)
    y = (z > 0).double()
    w = torch.zeros(d, dtype=x.dtype)
    for _ in range(3000):
        w = w - 0.1 * (x.T @ (torch.sigmoid(x @ w) - y[:, 0]) + PENALTY * w)
    torch.testing.assert_close(logistic_regression(x, y, PENALTY, 12)[:, 0], w, rtol=1e-9, atol=1e-11)


def test_one_iteration_is_ridge_regression_on_labels_of_two() -> None:
    """At w = 0 every p is 1/2 and s 1/4: z = (y - 1/2) / (1/4) = +-2, and the penalty counts four times."""
    x, z, _ = problem(4, 9)
    y = (z > 0).double()
    expected = ridge(x, 4 * y - 2, 4 * PENALTY)
    torch.testing.assert_close(logistic_regression(x, y, PENALTY, 1), expected, rtol=1e-12, atol=1e-14)


def test_gradients_of_the_iterations_agree_with_finite_differences() -> None:
    x, z, _ = problem(4, 6)
    y = (z > 0).double()
    variables = (x.requires_grad_(), PENALTY.clone().requires_grad_())
    assert torch.autograd.gradcheck(lambda x, penalty: logistic_regression(x, y, penalty, 3), variables)


def test_a_classifier_without_doubts_stays_finite() -> None:
    """In single precision a weight s becomes 0 here, after which a form that divides by it is not a number."""
    x = torch.tensor([[300.0, 1.0, 0.0], [-300.0, 1.0, 0.0]])
    y = torch.tensor([[1.0], [0.0]])
    w = logistic_regression(x, y, torch.tensor(1e-6), 40)
    assert w.isfinite().all()
    assert (x @ w).sign().flatten().tolist() == [1, -1]


@pytest.mark.parametrize("backbone", ["conv4", "r2d2"])  # more examples than features, fewer
def test_the_penalty_of_r2d2_is_per_example(backbone: str) -> None:
    """Each support example given twice changes nothing, since the loss is their mean; LR-D2's is their sum."""
    (x, y), _ = episodes(1)
    once, twice = Examples(x[0], y[0]), Examples(x[0].repeat(2, 1, 1, 1), y[0].repeat(2))
    same = {}
    for name in ("r2d2", "lrd2"):
        algo, theta = algo_and_theta(name, backbone)
        same[name] = torch.allclose(algo.adapt(theta, once), algo.adapt(theta, twice), rtol=1e-9)
    assert same == {"r2d2": True, "lrd2": False}


def test_the_network_has_the_papers_feature_sizes() -> None:
    for filters, shape, size in [
        ([96, 192, 384, 512], (1, 28, 28), 3584),
        ([64] * 4, (1, 28, 28), 512),
        ([64] * 4, (3, 84, 84), 10368),
    ]:
        network = build("backbone", {"name": "r2d2", "filters": filters}, input_shape=shape)
        assert network(torch.rand(2, *shape)).shape == (2, size)
        assert network.feature_size == size
    with pytest.raises(ConfigError, match=r"backbone.filters has 3 numbers: it must have 4, one for each block"):
        build("backbone", {"name": "r2d2", "filters": [64] * 3}, input_shape=(1, 28, 28))
