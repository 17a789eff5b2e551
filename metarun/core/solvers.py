"""Solvers of small linear models that gradients pass through: ridge and logistic regression.

Bertinetto, Henriques, Torr, Vedaldi, "Meta-learning with differentiable closed-form solvers", ICLR 2019,
https://arxiv.org/abs/1805.08136, section 3.
"""

import torch
from torch import Tensor
from torch.func import vmap


def with_ones(x: Tensor) -> Tensor:
    """A last column of ones, whose weight is the bias. [n, d] -> [n, d + 1]."""
    return torch.cat([x, x.new_ones(len(x), 1)], dim=1)


def ridge(x: Tensor, weighted_targets: Tensor, penalty: Tensor, weights: Tensor | float = 1.0) -> Tensor:
    """The w of least sum_i s_i (x_i w - z_i)^2 + penalty |w|^2: (X^T S X + penalty I)^-1 X^T S z.

    x: [n, d], weighted_targets: S z [n, m], weights: s [n, 1] -> [d, m]. With fewer examples than features it is
    X^T (S X X^T + penalty I)^-1 S z by Woodbury's identity, a system of n equations in place of d.
    """
    n, d = x.shape
    if n <= d:
        return x.T @ solved(weights * (x @ x.T), penalty, weighted_targets)
    return solved(x.T @ (weights * x), penalty, x.T @ weighted_targets)


def solved(matrix: Tensor, penalty: Tensor, right: Tensor) -> Tensor:
    """(matrix + penalty I)^-1 right, without waiting for a device's word that the matrix was not singular."""
    identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    return torch.linalg.solve_ex(matrix + penalty * identity, right)[0]


def logistic_regression(x: Tensor, y: Tensor, penalty: Tensor, iterations: int) -> Tensor:
    """Newton's steps from 0 to the w of least sum_i log(1 + exp(-(2 y_i - 1) x_i w)) + penalty / 2 |w|^2.

    x: [n, d]; y: [n, m] in 0..1, a separate problem in each column -> [d, m]. Each step is a weighted ridge
    regression (iteratively reweighted least squares); S z = s x w + y - p, so that nothing is divided
    by an s that vanishes.
    """

    def fitted(y: Tensor) -> Tensor:
        w = x.new_zeros(x.shape[1], 1)
        for _ in range(iterations):
            logits = x @ w  # [n, 1]
            p = logits.sigmoid()
            s = p * (1 - p)
            w = ridge(x, s * logits + y[:, None] - p, penalty, s)
        return w[:, 0]

    return vmap(fitted, in_dims=1, out_dims=1)(y)
