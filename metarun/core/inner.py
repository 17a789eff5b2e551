"""Steps that methods share, as plain functions of parameter dictionaries.

Networks that an algorithm holds are templates: only their forward pass and shapes count. `forward` calls them with the
weights of theta, and `Algorithm.init` draws those.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad

from metarun.core.norm import norm_names
from metarun.core.seeding import seed_for
from metarun.core.types import Algorithm, Backbone, Params, Theta


def forward(module: nn.Module, params: Params | tuple[Params, ...], *inputs: Tensor) -> Tensor:
    """Call `module` with `params` (one dictionary, or several to be joined) in place of its own weights."""
    output: Tensor = functional_call(module, params, inputs)
    return output


def draw_theta(algo: Algorithm, seed: int) -> Theta:
    """Draw an algorithm's initial meta-parameters from `seed` alone. Leaves the global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return algo.init()


@contextmanager
def own_generator() -> Iterator[None]:
    """Draw what follows from a second generator, whose seed is derived from the run's seed.

    The rule for `Algorithm.init`: draw the networks first, in the order backbone, head, the method's own ones. Draw
    inside this block what the method learns beside them. So all methods start from the same backbone and head, and the
    rest does not depend on how many numbers the networks took.
    """
    seed = torch.initial_seed()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, "theta"))
        yield


def copy_weights(module: nn.Module) -> Params:
    """Copy a module's weights: a component of theta."""
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def copy_networks(backbone: nn.Module, head: nn.Module | None = None) -> Theta:
    """Copy the weights of both, by component: "backbone", its "norm" layers, "head"."""
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
    """Draw new weights for both of these templates, by component: "backbone", its "norm" layers, "head"."""
    drawn: Backbone = replace(cast(Any, backbone))  # backbones are dataclasses: this builds another one
    return copy_networks(drawn, drawn.head(head.out_features) if head is not None else None)


def select(theta: Theta, *components: str) -> Theta:
    """Keep these components only."""
    return {component: theta[component] for component in components}


def flatten(components: Theta) -> Params:
    """Put all parameters in one dictionary, by full name, for example "backbone.convs.0.weight"."""
    return {f"{component}.{name}": p for component, params in components.items() for name, p in params.items()}


_one_by_one = ContextVar("_one_by_one", default=False)


@contextmanager
def one_by_one() -> Iterator[None]:
    """Declare that tasks run one after another here, under no transform of torch.func."""
    token = _one_by_one.set(True)
    try:
        yield
    finally:
        _one_by_one.reset(token)


_frozen: ContextVar[frozenset[str]] = ContextVar("_frozen", default=frozenset())


@contextmanager
def freeze(names: Iterable[str]) -> Iterator[None]:
    """Let inner steps leave these parameters, by full name, as they are."""
    token = _frozen.set(frozenset(names))
    try:
        yield
    finally:
        _frozen.reset(token)


def gradient_of(loss: Callable[[Theta], Tensor], phi: Theta) -> Theta:
    """grad loss(phi), itself differentiable if gradients are enabled.

    Uses torch.func, which vmap needs; inside `one_by_one` plain autograd, which is faster on small tensors.
    """
    if not _one_by_one.get():
        gradient: Theta = grad(loss)(phi)
        return gradient
    further = torch.is_grad_enabled()

    def make_input(p: Tensor) -> Tensor:  # a tensor of its own: `loss` may depend on p in other ways too
        return p.view_as(p) if further and p.requires_grad else p.detach().requires_grad_()

    with torch.enable_grad():
        inputs = {component: {name: make_input(p) for name, p in params.items()} for component, params in phi.items()}
        gradients = torch.autograd.grad(
            loss(inputs), list(flatten(inputs).values()), create_graph=further, materialize_grads=True
        )
    remaining = iter(gradients)
    return {component: {name: next(remaining) for name in params} for component, params in phi.items()}


def inner_step(
    loss: Callable[[Theta], Tensor], phi: Theta, *, lr: float | Params, first_order: bool | Tensor = False
) -> Theta:
    """phi - lr * grad loss(phi).

    `lr` is one rate for all parameters, or a rate by full name that broadcasts against its parameter. The result is
    differentiable in `lr` and in all that `loss` and `phi` depend on. With `first_order` the gradient counts as a
    constant, and no graph is kept for it. `first_order` may be a boolean scalar tensor: then the graph is always kept.
    """
    with torch.no_grad() if first_order is True else nullcontext():
        gradient = gradient_of(loss, phi)

    def step(component: str, name: str, p: Tensor) -> Tensor:
        if f"{component}.{name}" in _frozen.get():
            return p
        rate, g = lr[f"{component}.{name}"] if isinstance(lr, dict) else lr, gradient[component][name]
        return p - rate * (torch.where(first_order, g.detach(), g) if isinstance(first_order, Tensor) else g)

    return {
        component: {name: step(component, name, p) for name, p in params.items()} for component, params in phi.items()
    }


def unroll(
    loss: Callable[[Theta], Tensor], phi: Theta, *, lr: float | Params, steps: int, first_order: bool = False
) -> Iterator[Theta]:
    """Yield phi_0 = phi, then phi_1 .. phi_steps, each one `inner_step` after the one before."""
    yield phi
    for _ in range(steps):
        phi = inner_step(loss, phi, lr=lr, first_order=first_order)
        yield phi


def descend_by_adam(loss: Callable[[Params], Tensor], params: Params, lr: float, steps: int) -> Params:
    """Take `steps` steps of Adam, with PyTorch's constants; differentiable."""
    beta1, beta2, eps = 0.9, 0.999, 1e-8
    first = second = {name: torch.zeros_like(p) for name, p in params.items()}
    for step in range(1, steps + 1):
        gradient = grad(loss)(params)
        first = {name: beta1 * m + (1 - beta1) * gradient[name] for name, m in first.items()}
        second = {name: beta2 * v + (1 - beta2) * gradient[name].square() for name, v in second.items()}
        stepped = {}
        for name, p in params.items():
            known = torch.where(second[name] > 0, second[name], 1.0)  # no gradient so far: the root has no slope at 0
            scale = (known / (1 - beta2**step)).sqrt() + eps
            stepped[name] = p - lr * first[name] / (1 - beta1**step) / scale
        params = stepped
    return params


def last(states: Iterator[Theta]) -> Theta:
    """The final state of a trajectory."""
    return deque(states, maxlen=1)[0]


def slope(params: Theta, gradient: Theta) -> Tensor:
    """Zero, with `gradient` as its derivative in `params`: for updates that are no loss's gradient."""
    terms = [
        ((p - p.detach()) * gradient[component][name].detach()).sum()
        for component, weights in params.items()
        for name, p in weights.items()
    ]
    return torch.stack(terms).sum()


def outer_step(theta: Theta) -> Tensor:
    """The number of outer steps taken so far []: the training loop sets this clock before each step."""
    return theta["clock"]["step"].detach()


def at_step(params: Params, j: int) -> Params:
    """The values of inner step j, [J, ...] -> [...] each; beyond J, as at meta-test, those of the last step."""
    return {name: p[min(j, len(p) - 1)] for name, p in params.items()}


def stack_steps(by_step: Sequence[Params]) -> Params:
    """Stack the values of J steps: [...] -> [J, ...] each. The inverse of `at_step`."""
    return {name: torch.stack([params[name] for params in by_step]) for name in by_step[0]}


def layer_means(phi: Theta) -> Tensor:
    """[L]: the mean of every weight and bias, which is what ALFA and MeTAL see of a network."""
    return torch.stack([p.mean() for p in flatten(phi).values()])


def log_and_sign(g: Tensor, p: float) -> Tensor:
    """Turn numbers of any magnitude into two of about 1, for a network to read: [...] -> [..., 2].

    (log|g| / p, sign g), and (-1, e^p g) where |g| is below e^-p (Andrychowicz et al. 2016,
    https://arxiv.org/abs/1606.04474, appendix A).
    """
    large = g.abs() > math.exp(-p)
    log = torch.where(large, g.abs(), 1.0).log() / p
    return torch.stack([torch.where(large, log, -1.0), torch.where(large, g.sign(), math.exp(p) * g)], dim=-1)
