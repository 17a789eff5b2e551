"""Differentiable solvers of small linear models: ridge and logistic regression, of two classes or many; and the normal
distribution by its Cholesky factor, for Gaussian processes.

Bertinetto, Henriques, Torr, Vedaldi, "Meta-learning with differentiable closed-form solvers", ICLR 2019,
https://arxiv.org/abs/1805.08136, section 3.
"""

import math

import torch
from torch import Tensor
from torch.func import vmap


def add_ones(x: Tensor) -> Tensor:
    """Append a column of ones, whose weight is the bias. [n, d] -> [n, d + 1]."""
    return torch.cat([x, x.new_ones(x.shape[0], 1)], dim=1)


def ridge(x: Tensor, weighted_targets: Tensor, penalty: Tensor, weights: Tensor | float = 1.0) -> Tensor:
    """Minimise sum_i s_i (x_i w - z_i)^2 + penalty |w|^2 over w: (X^T S X + penalty I)^-1 X^T S z.

    x: [n, d], weighted_targets: S z [n, m], weights: s [n, 1] -> [d, m]. With no more examples than features this
    solves n equations instead of d, by Woodbury's identity: X^T (S X X^T + penalty I)^-1 S z.
    """
    n, d = x.shape
    if n <= d:
        return x.T @ solve(weights * (x @ x.T), penalty, weighted_targets)
    return solve(x.T @ (weights * x), penalty, x.T @ weighted_targets)


def solve(matrix: Tensor, penalty: Tensor | float, right: Tensor) -> Tensor:
    """(matrix + penalty I)^-1 right, at least in float32, also under autocast.

    Does not check for a singular matrix, since that waits for the device.
    """
    kind = torch.promote_types(torch.promote_types(matrix.dtype, right.dtype), torch.float32)
    matrix, right = matrix.to(kind), right.to(kind)
    identity = torch.eye(matrix.shape[0], dtype=matrix.dtype, device=matrix.device)
    solution: Tensor = torch.linalg.solve_ex(matrix + penalty * identity, right)[0]
    return solution


def factorise(covariance: Tensor, noise: Tensor | float) -> Tensor:
    """L, lower triangular, of covariance + noise I = L L^T, at least in float32, also under autocast. [n, n] -> [n, n].

    nan where that matrix is not positive definite: the check that raises an error waits for the device.
    """
    covariance = covariance.to(torch.promote_types(covariance.dtype, torch.float32))
    identity = torch.eye(covariance.shape[0], dtype=covariance.dtype, device=covariance.device)
    factor, failed = torch.linalg.cholesky_ex(covariance + noise * identity)
    return torch.where(failed > 0, torch.nan, factor)


def solve_lower(factor: Tensor, right: Tensor) -> Tensor:
    """L^-1 right: [n, n], [n, m] -> [n, m]."""
    solution: Tensor = torch.linalg.solve_triangular(factor, right.to(factor.dtype), upper=False)
    return solution


def log_normal(factor: Tensor, residuals: Tensor) -> Tensor:
    """log N(r; 0, L L^T) of each column r: L [n, n], residuals [n, m] -> [m]."""
    log_determinant = 2 * factor.diagonal().log().sum()
    constant = factor.shape[0] * math.log(2 * math.pi)
    return -0.5 * (solve_lower(factor, residuals).square().sum(0) + log_determinant + constant)


def logistic_regression(x: Tensor, y: Tensor, penalty: Tensor, iterations: int) -> Tensor:
    """Minimise sum_i log(1 + exp(-(2 y_i - 1) x_i w)) + penalty / 2 |w|^2 over w, by Newton's steps from 0.

    x: [n, d]; y: [n, m] in 0..1, a separate problem in each column -> [d, m]. Each step is a weighted ridge regression
    (iteratively reweighted least squares). It uses S z = s x w + y - p, which does not divide by s.
    """

    def fit(y: Tensor) -> Tensor:
        w = x.new_zeros(x.shape[1], 1)
        for _ in range(iterations):
            logits = x @ w  # [n, 1]
            p = logits.sigmoid()
            s = p * (1 - p)
            w = ridge(x, s * logits + y[:, None] - p, penalty, s)
        return w[:, 0]

    return vmap(fit, in_dims=1, out_dims=1)(y)


def multinomial_regression(
    x: Tensor, members: Tensor, penalty: float | Tensor, iterations: int
) -> tuple[Tensor, Tensor]:
    """Minimise sum_i -log softmax(x_i W + b)[y_i] + penalty / 2 |W|^2 over W and b, from 0.

    x: [n, d]; members: [n, N], 1 at the label; a row of zeros does not count -> W [d, N], b [N]. Every step minimises a
    quadratic bound of the loss, whose curvature 1/2 x x^T is the same everywhere (Böhning 1992,
    https://doi.org/10.1007/BF00048682): one matrix is inverted for all steps. It is n x n, because W = X^T A; with X
    centred, the steps of W and of b are independent.
    """
    there = members.sum(1, keepdim=True)  # [n, 1]
    count = there.sum()
    mean = (there * x).sum(0) / count
    centred = there * (x - mean)
    kernel = centred @ centred.T
    step = solve(kernel / 2, penalty, torch.eye(x.shape[0], dtype=x.dtype, device=x.device))  # (K / 2 + penalty)^-1
    a, b = torch.zeros_like(members), members.new_zeros(members.shape[1])
    for _ in range(iterations):
        excess = there * (kernel @ a + b).softmax(-1) - members
        a = a - step @ (excess + penalty * a)
        b = b - 2 / count * excess.sum(0)
    weight = centred.T @ a
    return weight, b - mean @ weight
