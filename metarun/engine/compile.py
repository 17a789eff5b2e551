"""Meta-gradients compiled by TorchInductor."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_unflatten

from metarun.core.types import Episode, Metrics, Theta
from metarun.engine.capture import compare, shapes
from metarun.engine.gradient import Part


class Compiled:
    """A part whose whole graph, inner gradients and their derivatives included, is traced and compiled by
    TorchInductor, anew for other shapes. Inductor keeps what it compiled in its own cache between runs.
    """

    def __init__(self, part: Part) -> None:
        self.part = part
        self._programs: dict[Any, Callable[..., Any]] = {}

    def __call__(self, theta: Theta, tasks: Episode) -> tuple[Metrics, list[Tensor]]:
        """Raises Failed where the compiled gradient is not the eager one."""
        leaves, structure = tree_flatten((theta, tasks))
        key = shapes(leaves)
        with torch.no_grad():
            leaves = [leaf.detach() for leaf in leaves]
            if key not in self._programs:
                self._programs[key] = self._checked(theta, tasks, leaves, structure)
            return self._programs[key](leaves)

    def _checked(self, theta: Theta, tasks: Episode, leaves: list[Tensor], structure: Any) -> Callable[..., Any]:
        outputs: Any = None

        def flat(*leaves: Tensor) -> list[Tensor]:
            nonlocal outputs
            theta, tasks = tree_unflatten(list(leaves), structure)
            theta = {c: {n: p.detach().requires_grad_() for n, p in params.items()} for c, params in theta.items()}
            with torch.enable_grad():
                values, outputs = tree_flatten(self.part(theta, tasks))
            return values

        compiled = torch.compile(make_fx(flat)(*leaves), dynamic=False, fullgraph=True)

        def program(leaves: list[Tensor]) -> Any:
            return tree_unflatten(list(compiled(*leaves)), outputs)

        with torch.enable_grad():
            compare("trainer.compile: the compiled", program(leaves)[1], self.part(theta, tasks)[1])
        return program
