"""Deep kernel transfer: every kernel, the posterior and its density."""

import math

import pytest
import torch
from scipy.stats import norm as normal

from metarun.core.batch import unstack
from metarun.core.norm import collect_statistics, use_statistics
from metarun.core.solvers import factorise, log_normal
from metarun.engine.gradient import meta_gradient
from tests.reference.dkt import compare, embed
from tests.support.tiny import algo_and_theta, episodes, leaves, plain_losses

KERNELS = ("linear", "cossim", "bncossim", "rbf", "spectral")


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_gradient_of_the_marginal_likelihood_is_that_of_a_dense_normal(kernel: str) -> None:
    for kind in ("regression", "classification"):
        algo, theta = algo_and_theta("dkt", "mlp", kind, kernel=kernel)
        tasks = episodes(2, kind)
        loss, _, gradient = meta_gradient(algo, theta, tasks, execution="vmap")
        plain = plain_losses("dkt", "mlp", theta, tasks, kernel=kernel).mean()
        torch.testing.assert_close(loss, plain.detach(), rtol=1e-10, atol=1e-12)
        expected = torch.autograd.grad(plain, leaves(theta), materialize_grads=True)
        torch.testing.assert_close(leaves(gradient), list(expected), rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_posterior_is_the_textbooks(kernel: str) -> None:
    """Eq. 2.25 and 2.26 of Rasmussen & Williams 2006, with the inverse written out and a mean and noise added."""
    algo, theta = algo_and_theta("dkt", "tanh", "regression", kernel=kernel)
    support, query = unstack(episodes(1, "regression"))[0]
    together = torch.cat([support.x, query.x])
    use_statistics(algo.backbone, collect_statistics(algo.backbone, lambda: algo.embed(theta, together)))
    mean, variance = algo.posterior(theta, algo.adapt(theta, support), query.x)
    z = embed("tanh", theta, together, kernel)  # its batch norm over all of them: the statistics collected above
    k = torch.stack([torch.stack([compare(theta, kernel, a, b) for b in z]) for a in z])
    n, noise, prior = len(support.y), theta["process"]["log_noise"].exp() + 1e-4, theta["process"]["mean"]
    inverse = torch.linalg.inv(k[:n, :n] + noise * torch.eye(n, dtype=k.dtype))
    torch.testing.assert_close(mean, prior + k[n:, :n] @ inverse @ (support.y - prior), rtol=1e-8, atol=1e-10)
    expected = (k[n:, n:] - k[n:, :n] @ inverse @ k[:n, n:]).diagonal() + noise
    torch.testing.assert_close(variance[:, 0], expected, rtol=1e-8, atol=1e-10)


def test_the_density_of_predictions_is_scipys() -> None:
    algo, theta = algo_and_theta("dkt", "mlp", "regression", kernel="rbf")
    task = unstack(episodes(1, "regression"))[0]
    metrics = algo.task_metrics(theta, task)
    mean, variance = (part.detach() for part in algo.posterior(theta, algo.adapt(theta, task.support), task.query.x))
    there = normal(mean, variance.sqrt().expand_as(mean))
    assert metrics["nll"].item() == pytest.approx(-there.logpdf(task.query.y).mean(), rel=1e-12)
    low, high = there.interval(0.95)
    inside = [a < y < b for a, y, b in zip(low.flat, task.query.y.flatten().tolist(), high.flat)]
    assert metrics["coverage"].item() == pytest.approx(sum(inside) / len(inside))
    assert metrics["mse"].item() == pytest.approx((mean - task.query.y).square().mean().item(), rel=1e-12)


def test_one_point_by_hand() -> None:
    """The linear kernel of z = 2 with scale 1 and noise 1 gives variance 5: log N(3; 0, 5)."""
    factor = factorise(torch.tensor([[4.0]], dtype=torch.float64), torch.ones((), dtype=torch.float64))
    found = log_normal(factor, torch.tensor([[3.0]], dtype=torch.float64))
    assert found.item() == pytest.approx(-0.5 * (9 / 5 + math.log(5) + math.log(2 * math.pi)), rel=1e-14)


def test_a_matrix_that_is_no_covariance_gives_nan_so_that_training_stops() -> None:
    assert factorise(-torch.eye(3), torch.zeros(())).isnan().all()
