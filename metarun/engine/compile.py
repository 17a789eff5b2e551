"""Meta-gradients compiled by TorchInductor: inner gradients and their derivatives in one graph."""

import logging
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from metarun.core.types import Metrics, Task, Theta
from metarun.engine.gradient import Part
from metarun.engine.verify import find_difference, shapes_of

say = logging.getLogger(__name__)


class Compiled:
    """A part of the meta-gradient, traced whole and compiled anew for other shapes.

    Inductor keeps what it compiled in its own cache between runs. A program whose gradient is not the eager one is not
    used, and the log says so.
    """

    def __init__(self, part: Part) -> None:
        self.part = part
        self._programs: dict[Any, Part] = {}

    def __call__(self, theta: Theta, tasks: Task) -> tuple[Metrics, list[Tensor]]:
        shapes = shapes_of(tree_leaves((theta, tasks)))
        if shapes not in self._programs:
            self._programs[shapes] = self._check(self._compile(theta, tasks), theta, tasks)
        return self._programs[shapes](theta, tasks)

    def _check(self, program: Part, theta: Theta, tasks: Task) -> Part:
        """Return the program, or the eager part if they differ."""
        found, eager, again = (part(theta, tasks)[1] for part in (program, self.part, self.part))
        if difference := find_difference(found, eager, again):
            say.warning("trainer.compile: not used, %s", difference)
            return self.part
        return program

    def _compile(self, theta: Theta, tasks: Task) -> Part:
        leaves, structure = tree_flatten((theta, tasks))
        outputs: Any = None

        def flat(*leaves: Tensor) -> list[Tensor]:
            nonlocal outputs
            theta, tasks = tree_unflatten(list(leaves), structure)
            theta = {c: {n: p.detach().requires_grad_() for n, p in params.items()} for c, params in theta.items()}
            with torch.enable_grad():
                values, outputs = tree_flatten(self.part(theta, tasks))
            return values

        with torch.no_grad():
            compiled = torch.compile(make_fx(flat)(*(p.detach() for p in leaves)), dynamic=False, fullgraph=True)

        @torch.no_grad()
        def program(theta: Theta, tasks: Task) -> tuple[Metrics, list[Tensor]]:
            values = compiled(*(leaf.detach() for leaf in tree_leaves((theta, tasks))))
            result: tuple[Metrics, list[Tensor]] = tree_unflatten(list(values), outputs)
            return result

        return program
