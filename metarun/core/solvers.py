"""Differentiable solvers of small linear models: ridge and logistic regression.

Bertinetto, Henriques, Torr, Vedaldi, "Meta-learning with differentiable closed-form solvers", ICLR 2019,
https://arxiv.org/abs/1805.08136, section 3.
"""

import torch
from torch import Tensor
from torch.func import vmap


def add_ones(x: Tensor) -> Tensor:
    """Append a column of ones, whose weight is the bias. [n, d] -> [n, d + 1]."""
    return torch.cat([x, x.new_ones(len(x), 1)], dim=1)


def ridge(x: Tensor, weighted_targets: Tensor, penalty: Tensor, weights: Tensor | float = 1.0) -> Tensor:
    """Minimise sum_i s_i (x_i w - z_i)^2 + penalty |w|^2 over w: (X^T S X + penalty I)^-1 X^T S z.

    x: [n, d], weighted_targets: S z [n, m], weights: s [n, 1] -> [d, m]. With no more examples than features this
    solves n equations instead of d, by Woodbury's identity: X^T (S X X^T + penalty I)^-1 S z.
    """
    n, d = x.shape
    if n <= d:
        return x.T @ solve(weights * (x @ x.T), penalty, weighted_targets)
    return solve(x.T @ (weights * x), penalty, x.T @ weighted_targets)


def solve(matrix: Tensor, penalty: Tensor, right: Tensor) -> Tensor:
    """(matrix + penalty I)^-1 right, at least in float32, also under autocast.

    Does not check for a singular matrix, since that waits for the device.
    """
    kind = torch.promote_types(torch.promote_types(matrix.dtype, right.dtype), torch.float32)
    matrix, right = matrix.to(kind), right.to(kind)
    identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    solution: Tensor = torch.linalg.solve_ex(matrix + penalty * identity, right)[0]
    return solution


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
