"""The steps that methods of the gradient family share, as plain functions of parameter dictionaries."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.func import grad

from metarun.backbones.norm import norm_names
from metarun.types import Theta


def initial_theta(backbone: nn.Module, head: nn.Module | None = None) -> Theta:
    """The modules' own weights as meta-parameters, by component: "backbone", its "norm" layers, "head"."""
    norms = norm_names(backbone)
    weights = {name: p.detach().clone() for name, p in backbone.named_parameters()}
    theta = {
        "backbone": {name: p for name, p in weights.items() if name not in norms},
        "norm": {name: p for name, p in weights.items() if name in norms},
    }
    if head is not None:
        theta["head"] = {name: p.detach().clone() for name, p in head.named_parameters()}
    return theta


def select(theta: Theta, *components: str) -> Theta:
    return {component: theta[component] for component in components}


def unroll(
    loss: Callable[[Theta], Tensor], phi: Theta, *, lr: float, steps: int, first_order: bool = False
) -> Iterator[Theta]:
    """phi_0 = phi, then phi_1 .. phi_steps by phi_{j+1} = phi_j - lr * grad loss(phi_j).

    Differentiable in whatever `loss` and `phi` depend on, unless `first_order`: then the gradients count as
    constants, and no graph is kept for them.
    """
    yield phi
    for _ in range(steps):
        with torch.no_grad() if first_order else nullcontext():
            gradient = grad(loss)(phi)
        phi = {
            component: {name: p - lr * gradient[component][name] for name, p in params.items()}
            for component, params in phi.items()
        }
        yield phi


def last(states: Iterator[Theta]) -> Theta:
    """The final state of a trajectory."""
    return deque(states, maxlen=1)[0]


def slope(params: Theta, gradient: Theta) -> Tensor:
    """Zero, with `gradient` as its derivative in `params`: for updates that no loss has as its gradient."""
    terms = [
        ((p - p.detach()) * gradient[component][name].detach()).sum()
        for component, weights in params.items()
        for name, p in weights.items()
    ]
    return torch.stack(terms).sum()
