"""CUDA graphs: work of the device recorded once and launched as one, in place of a thousand kernels one by one.

A recording holds what the device did, at fixed addresses; Python is not run again. So nothing recorded may depend on
a number that Python holds and changes: rates are tensors, and tasks are drawn outside and copied in.
"""

import logging
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from metarun.engine.verify import compare_gradients, shapes_of

T = TypeVar("T")
WARM_UP = 3  # calls before recording: libraries set themselves up at first use, which must not be recorded
say = logging.getLogger(__name__)


def record(function: Callable[[], T]) -> Callable[[], T]:
    """Record `function` and return its replay as one launch. Raises RuntimeError if it waits for the device."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # another thread may be fetching pictures
        outputs = function()

    def launch() -> T:
        graph.replay()
        kept: T = tree_map(torch.clone, outputs)  # the next launch overwrites them
        return kept

    return launch


def run_aside(function: Callable[[], T]) -> T:
    """Run `function` on a stream of its own, which CUDA asks of everything that is recorded later."""
    stream, here = torch.cuda.Stream(), torch.cuda.current_stream()
    stream.wait_stream(here)
    with torch.cuda.stream(stream):
        outputs = function()
    here.wait_stream(stream)
    return outputs


class Captured(Generic[T]):
    """A function of tensors as a CUDA graph, recorded anew for other shapes.

    The first calls are ordinary ones. `changed` returns the tensors that a call changes in place; `gradient` reads the
    meta-gradient of the last call from its outputs, to compare the graph's with the eager one. A function that cannot
    be recorded goes on without a graph, and the log says why.
    """

    def __init__(
        self,
        what: str,
        function: Callable[..., T],
        gradient: Callable[[T], list[Tensor]],
        changed: Callable[[], list[Tensor]] = list,
    ) -> None:
        self.what, self.function, self.gradient, self.changed = what, function, gradient, changed
        self.calls: dict[Any, int] = {}
        self.programs: dict[Any, Callable[..., T]] = {}

    def __call__(self, *inputs: Any) -> T:
        """Call the function. Raises Failed if the graph's gradient is not the eager one."""
        shapes = shapes_of(tree_leaves(inputs))
        self.calls[shapes] = self.calls.get(shapes, 0) + 1
        if self.calls[shapes] <= WARM_UP:
            return run_aside(lambda: self.function(*inputs))
        if shapes not in self.programs:
            self.programs[shapes] = self._record(*inputs)
        return self.programs[shapes](*inputs)

    def _record(self, *inputs: Any) -> Callable[..., T]:
        """Record the function and compare it with an ordinary call; what either changed is put back."""
        static = tree_map(lambda value: value.detach().clone().requires_grad_(value.requires_grad), inputs)
        before = [tensor.detach().clone() for tensor in self.changed()]
        expected = [g.clone() for g in self.gradient(self.function(*static))]
        self._restore(before)
        try:
            launch = record(lambda: self.function(*static))
        except RuntimeError as error:
            say.info("%s not recorded as a CUDA graph: %s", self.what, str(error).splitlines()[0])
            self._restore(before)
            return self.function

        def program(*inputs: Any) -> T:
            with torch.no_grad():
                tree_map(lambda kept, value: kept.copy_(value), static, inputs)
            return launch()

        found = self.gradient(program(*inputs))
        compare_gradients("the CUDA graph's", found, expected)
        self._restore(before)
        return program

    @torch.no_grad()
    def _restore(self, before: list[Tensor]) -> None:
        for tensor, value in zip(self.changed(), before, strict=True):
            tensor.copy_(value)
