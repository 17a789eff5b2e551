"""Meta-gradients compiled by TorchInductor: inner gradients and their derivatives in one graph."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_unflatten

from metarun.core.types import Episode, Metrics, Theta
from metarun.engine.gradient import Part
from metarun.engine.verify import compare_gradients, shapes_of


class Compiled:
    """A part of the meta-gradient, traced whole and compiled anew for other shapes.

    Inductor keeps what it compiled in its own cache between runs.
    """

    def __init__(self, part: Part) -> None:
        self.part = part
        self._programs: dict[Any, Callable[[list[Tensor]], Any]] = {}

    def __call__(self, theta: Theta, tasks: Episode) -> tuple[Metrics, list[Tensor]]:
        """Compute the part. Raises Failed if the compiled gradient is not the eager one."""
        leaves, structure = tree_flatten((theta, tasks))
        shapes = shapes_of(leaves)
        with torch.no_grad():
            leaves = [leaf.detach() for leaf in leaves]
            if shapes not in self._programs:
                program = self._compile(leaves, structure)
                with torch.enable_grad():
                    eager = self.part(theta, tasks)
                compare_gradients("trainer.compile: the compiled", program(leaves)[1], eager[1])
                self._programs[shapes] = program
            outputs: tuple[Metrics, list[Tensor]] = self._programs[shapes](leaves)
            return outputs

    def _compile(self, leaves: list[Tensor], structure: Any) -> Callable[[list[Tensor]], Any]:
        outputs: Any = None

        def flat(*leaves: Tensor) -> list[Tensor]:
            nonlocal outputs
            theta, tasks = tree_unflatten(list(leaves), structure)
            theta = {c: {n: p.detach().requires_grad_() for n, p in params.items()} for c, params in theta.items()}
            with torch.enable_grad():
                values, outputs = tree_flatten(self.part(theta, tasks))
            return values

        compiled = torch.compile(make_fx(flat)(*leaves), dynamic=False, fullgraph=True)
        return lambda leaves: tree_unflatten(list(compiled(*leaves)), outputs)
