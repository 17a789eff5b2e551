"""CUDA graphs: work of the device recorded once and launched as one, in place of a thousand kernels one by one.

A recording holds what the device did, at fixed addresses; Python is not run again. So nothing recorded may depend on
a number that Python holds and changes: rates are tensors, and a generator is seeded before each launch.
"""

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from metarun.config.errors import Failed
from metarun.core.types import Episode, Metrics, Theta
from metarun.engine.gradient import Part
from metarun.engine.state import State

say = logging.getLogger(__name__)
T = TypeVar("T")
WARM_UP = 3  # calls before: libraries set themselves up at first use, which must not be recorded
TOLERANCE = {torch.float32: 1e-2, torch.float64: 1e-10}  # in float32 one ReLU on the other side is 1e-3


def recorded(function: Callable[[], T], generator: torch.Generator | None = None) -> Callable[[], T]:
    """`function` as one launch. Raises RuntimeError where it cannot be recorded, as where it waits for the device."""
    graph = torch.cuda.CUDAGraph()
    if generator is not None:
        graph.register_generator_state(generator)
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # another thread may be fetching pictures
        outputs = function()

    def launch() -> T:
        graph.replay()
        kept: T = tree_map(torch.clone, outputs)  # the next launch overwrites them
        return kept

    return launch


def aside(function: Callable[[], T]) -> T:
    """On a stream of its own, as what is to be recorded must run first."""
    stream, here = torch.cuda.Stream(), torch.cuda.current_stream()
    stream.wait_stream(here)
    with torch.cuda.stream(stream):
        outputs = function()
    here.wait_stream(stream)
    return outputs


class CapturedPart:
    """A part as a CUDA graph, recorded anew for other shapes. What cannot be recorded goes on without, and says why."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.programs: dict[Any, Part] = {}

    def __call__(self, theta: Theta, tasks: Episode) -> tuple[Metrics, list[Tensor]]:
        """Raises Failed where the graph's gradient is not the eager one."""
        key = shapes(tree_leaves((theta, tasks)))
        if key not in self.programs:
            self.programs[key] = self._program(theta, tasks)
        return self.programs[key](theta, tasks)

    def _program(self, theta: Theta, tasks: Episode) -> Part:
        inputs = tree_map(lambda value: value.detach().clone().requires_grad_(value.requires_grad), (theta, tasks))
        for _ in range(WARM_UP):
            expected = aside(lambda: self.part(*inputs))
        try:
            launch = recorded(lambda: self.part(*inputs))
        except RuntimeError as error:
            say.info("gradient not recorded as a CUDA graph: %s", str(error).splitlines()[0])
            return self.part

        def program(theta: Theta, tasks: Episode) -> tuple[Metrics, list[Tensor]]:
            with torch.no_grad():
                tree_map(lambda static, value: static.copy_(value), inputs, (theta, tasks))
            return launch()

        compare("the CUDA graph's", program(theta, tasks)[1], expected[1])
        return program


class CapturedStep:
    """The whole of a training step as a CUDA graph: tasks, gradient, clipping and the outer optimiser's step.

    The first steps are ordinary ones. `step` draws from the generator that it is given, which `seed_of` a step's
    number seeds, and changes `state` in place. Where it cannot be recorded, `instead` goes on without, and it is said
    why.
    """

    def __init__(
        self,
        step: Callable[[torch.Generator], Metrics],
        seed_of: Callable[[int], int],
        state: State,
        device: torch.device,
        instead: Callable[[int], Metrics],
    ) -> None:
        self.step, self.seed_of, self.state, self.device, self.instead = step, seed_of, state, device, instead
        self.calls = 0
        self.launch: Callable[[int], Metrics] | None = None

    def __call__(self, number: int) -> Metrics:
        """Raises Failed where the graph's gradient is not the eager one."""
        self.calls += 1
        if self.calls <= WARM_UP:
            return aside(lambda: self._ordinary(number))
        if self.launch is None:
            self.launch = self._launch(number)
        return self.launch(number)

    def _ordinary(self, number: int) -> Metrics:
        return self.step(torch.Generator(self.device).manual_seed(self.seed_of(number)))

    def _launch(self, number: int) -> Callable[[int], Metrics]:
        """Recorded; compared with the ordinary step, after which everything is put back."""
        before = [tensor.detach().clone() for tensor in self._changed()]
        self._ordinary(number)
        expected = self._gradient()
        self._put_back(before)
        generator = torch.Generator(self.device)
        generator.manual_seed(self.seed_of(number))
        try:
            replay = recorded(lambda: self.step(generator), generator)
        except RuntimeError as error:
            say.info("step not recorded as a CUDA graph: %s", str(error).splitlines()[0])
            self._put_back(before)
            return self.instead

        def launch(number: int) -> Metrics:
            generator.manual_seed(self.seed_of(number))
            return replay()

        launch(number)
        compare("the CUDA graph's", self._gradient(), expected)
        self._put_back(before)
        return launch

    def _changed(self) -> list[Tensor]:
        return tree_leaves((self.state.theta, dict(self.state.optimizer.state)))

    def _gradient(self) -> list[Tensor]:
        return [p.grad.clone() for group in self.state.optimizer.param_groups for p in group["params"]]

    @torch.no_grad()
    def _put_back(self, before: list[Tensor]) -> None:
        for tensor, value in zip(self._changed(), before, strict=True):
            tensor.copy_(value)


def shapes(leaves: list[Tensor]) -> tuple[Any, ...]:
    return tuple((leaf.shape, leaf.stride()) for leaf in leaves)


def compare(whose: str, found: list[Tensor], expected: list[Tensor]) -> None:
    """Raises Failed where a meta-gradient is not the eager one."""
    ours, eager = (torch.cat([g.detach().flatten() for g in gradient]) for gradient in (found, expected))
    difference = float((ours - eager).norm() / eager.norm())
    if not difference <= TOLERANCE[ours.dtype]:
        raise Failed(f"{whose} meta-gradient differs from the eager one by {difference:.1e} of its norm")
    say.debug("%s meta-gradient differs from the eager one by %.1e of its norm", whose, difference)
