"""The steps that methods of the gradient family share, as plain functions of parameter dictionaries."""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import grad

from metarun.core.norm import norm_names
from metarun.core.seeding import seed_for
from metarun.core.types import Algorithm, Backbone, Params, Theta


def draw_theta(algo: Algorithm, seed: int) -> Theta:
    """Draw an algorithm's initial meta-parameters from `seed` alone; the global generator is as before afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return algo.init()


@contextmanager
def own_generator() -> Iterator[None]:
    """Inside, numbers are drawn from a generator of their own, whose seed follows from the run's seed.

    The rule of `init()`: networks are drawn first, in the order backbone, head, the method's own; what a method learns
    beside them is drawn inside this block. So methods with one seed start from the same backbone and head, and what a
    method adds does not depend on how many numbers the networks took.
    """
    seed = torch.initial_seed()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, "theta"))
        yield


def copy_weights(module: nn.Module) -> Params:
    """Copy a module's weights, as a component of theta."""
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def copy_networks(backbone: nn.Module, head: nn.Module | None = None) -> Theta:
    """Copy the modules' weights, by component: "backbone", its "norm" layers, "head"."""
    norms = norm_names(backbone)
    weights = copy_weights(backbone)
    theta = {
        "backbone": {name: p for name, p in weights.items() if name not in norms},
        "norm": {name: p for name, p in weights.items() if name in norms},
    }
    if head is not None:
        theta["head"] = copy_weights(head)
    return theta


def draw_networks(backbone: Backbone, head: nn.Linear | None = None) -> Theta:
    """Draw new weights for networks of the form of these templates, by component as in `copy_networks`."""
    drawn: Backbone = replace(cast(Any, backbone))  # a backbone is a dataclass, which this builds again
    return copy_networks(drawn, drawn.head(head.out_features) if head is not None else None)


def select(theta: Theta, *components: str) -> Theta:
    return {component: theta[component] for component in components}


def named(components: Theta) -> Params:
    """All parameters in one dictionary, by full names as "backbone.convs.0.weight"."""
    return {f"{component}.{name}": p for component, params in components.items() for name, p in params.items()}


_one_by_one = ContextVar("_one_by_one", default=False)


@contextmanager
def one_by_one() -> Iterator[None]:
    """Here tasks are run one after another, under no transform of torch.func."""
    token = _one_by_one.set(True)
    try:
        yield
    finally:
        _one_by_one.reset(token)


def gradient_of(loss: Callable[[Theta], Tensor], phi: Theta) -> Theta:
    """grad loss(phi), itself differentiable where gradients are enabled.

    By torch.func, as vmap needs it; `one_by_one` by plain autograd, which handles small tensors more quickly.
    """
    if not _one_by_one.get():
        return grad(loss)(phi)
    further = torch.is_grad_enabled()

    def input_of(p: Tensor) -> Tensor:  # a tensor of its own: loss may depend on p by other ways as well
        return p.view_as(p) if further and p.requires_grad else p.detach().requires_grad_()

    with torch.enable_grad():
        inputs = {component: {name: input_of(p) for name, p in params.items()} for component, params in phi.items()}
        found = torch.autograd.grad(
            loss(inputs), list(named(inputs).values()), create_graph=further, materialize_grads=True
        )
    remaining = iter(found)
    return {component: {name: next(remaining) for name in params} for component, params in phi.items()}


def inner_step(
    loss: Callable[[Theta], Tensor], phi: Theta, *, lr: float | Params, first_order: bool | Tensor = False
) -> Theta:
    """phi - lr * grad loss(phi), with one rate for all, or by full name one that broadcasts against each parameter.

    Differentiable in `lr` and in whatever `loss` and `phi` depend on, unless `first_order`: then the gradient
    counts as a constant, and no graph is kept for it. Where that is a tensor (a boolean scalar), the graph is
    kept in either case, and counts where it is false.
    """
    with torch.no_grad() if first_order is True else nullcontext():
        gradient = gradient_of(loss, phi)

    def stepped(component: str, name: str, p: Tensor) -> Tensor:
        rate, g = lr[f"{component}.{name}"] if isinstance(lr, dict) else lr, gradient[component][name]
        return p - rate * (torch.where(first_order, g.detach(), g) if isinstance(first_order, Tensor) else g)

    return {
        component: {name: stepped(component, name, p) for name, p in params.items()}
        for component, params in phi.items()
    }


def unroll(
    loss: Callable[[Theta], Tensor], phi: Theta, *, lr: float | Params, steps: int, first_order: bool = False
) -> Iterator[Theta]:
    """phi_0 = phi, then phi_1 .. phi_steps, each by an `inner_step` from the one before."""
    yield phi
    for _ in range(steps):
        phi = inner_step(loss, phi, lr=lr, first_order=first_order)
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


def outer_step(theta: Theta) -> Tensor:
    """How many outer steps were taken, by a carried clock; a mean over tasks may have left it a rounding error off."""
    return theta["clock"]["step"].detach().round()


def tick(theta: Theta) -> Tensor:
    """0; its gradient of -1 makes the clock go on by 1."""
    clock = theta["clock"]["step"]
    return clock.detach() - clock


def at_step(params: Params, j: int) -> Params:
    """What belongs to inner step j, [J, ...] -> [...] each; from J on, as at meta-test, that of the last."""
    return {name: p[min(j, len(p) - 1)] for name, p in params.items()}


def stacked(by_step: Sequence[Params]) -> Params:
    """The inverse: what belongs to each of J steps, as [J, ...]."""
    return {name: torch.stack([params[name] for params in by_step]) for name in by_step[0]}


def layer_means(phi: Theta) -> Tensor:
    """[L]: the mean of every weight and bias, what ALFA and MeTAL see of a network."""
    return torch.stack([p.mean() for p in named(phi).values()])


def log_and_sign(g: Tensor, p: float) -> Tensor:
    """Numbers of any size as two of about 1, for a network to read: [...] -> [..., 2].

    (log|g| / p, sign g), and below e^-p (-1, e^p g) (Andrychowicz et al. 2016, https://arxiv.org/abs/1606.04474, A).
    """
    large = g.abs() > math.exp(-p)
    log = torch.where(large, g.abs(), 1.0).log() / p
    return torch.stack([torch.where(large, log, -1.0), torch.where(large, g.sign(), math.exp(p) * g)], dim=-1)
