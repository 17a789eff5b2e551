"""A function as a sum of few terms, by least squares over every choice of them."""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import grad, jacrev


class Formula(NamedTuple):
    """The coefficients of the terms that were kept, and the share of the function's mean square that they explain."""

    coefficients: dict[str, float]
    explained: float


class Meeting(NamedTuple):
    """Where a loss is looked at, and what it is to be written by."""

    x: Tensor
    loss: Callable[[Tensor], Tensor]  # x -> []
    terms: Callable[[Tensor], Mapping[str, Tensor]]  # x -> name -> []


def fit_slopes(meetings: Sequence[Meeting]) -> Formula:
    """Fit the slopes of a loss by those of its terms, because steps follow these alone."""
    slopes = [grad(loss)(x).flatten() for x, loss, _ in meetings]
    columns = [
        jacrev(lambda x, terms=terms: torch.stack(list(terms(x).values())))(x).flatten(1) for x, _, terms in meetings
    ]
    names = meetings[0].terms(meetings[0].x)
    return fit_formula(dict(zip(names, torch.cat(columns, 1))), torch.cat(slopes))


def fit_formula(terms: Mapping[str, Tensor], values: Tensor, loss: float = 0.01) -> Formula:
    """The fewest terms that explain values [k] by no more than `loss` less than all terms do; the best choice of them.

    terms: name -> its values [k]. The share explained is 1 - |residual|^2 / |values|^2.
    """
    every = fit(terms, list(terms), values)
    for count in range(1, len(terms)):
        best = max((fit(terms, names, values) for names in combinations(terms, count)), key=lambda f: f.explained)
        if best.explained >= every.explained - loss:
            return best
    return every


def fit(terms: Mapping[str, Tensor], names: tuple[str, ...] | list[str], values: Tensor) -> Formula:
    """Least squares on the terms of these names, in float64."""
    columns, wanted = torch.stack([terms[name] for name in names], 1).double(), values.double()[:, None]
    solution = torch.linalg.lstsq(columns, wanted, driver="gelsd").solution
    left = (columns @ solution - wanted).square().sum() / wanted.square().sum()
    return Formula(dict(zip(names, solution[:, 0].tolist())), 1 - float(left))
