"""CUDA graphs: work of the device recorded once and launched as one, in place of a thousand kernels one by one.

A recording holds what the device did, at fixed addresses; Python is not run again. So nothing recorded may depend on
a number that Python holds and changes: rates are tensors, and tasks are drawn outside and copied in.
"""

import contextlib
import functools
import gc
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from metarun.config.schema import TrainerSettings
from metarun.core.types import Theta
from metarun.engine.distributed import Ranks
from metarun.engine.state import State
from metarun.engine.verify import find_difference, shapes_of
from metarun.engine.watch import Watch

T = TypeVar("T")
Recording = Literal["step", "halves", "gradient", "nothing"]
WARM_UP = 3  # calls before recording: libraries set themselves up at first use, which must not be recorded
EMPTY = "The CUDA Graph is empty"  # PyTorch's warning about a recording on another device or stream
say = logging.getLogger(__name__)


def choose_recording(
    settings: TrainerSettings, device: torch.device, optimizer: torch.optim.Optimizer, ranks: Ranks
) -> Recording:
    """Return what of a step is recorded: all of it, or its halves, between which several processes add their gradients,
    or the gradient alone, and then the log says why.
    """
    if not settings.cuda_graph:
        return "nothing"
    if device.type != "cuda":
        say.info("trainer.cuda_graph has no effect: device=%s has no CUDA graphs", device.type)
        return "nothing"
    if not all(isinstance(group["lr"], Tensor) for group in optimizer.param_groups):
        name = type(optimizer).__name__
        say.info("of a step only the gradient is recorded as a CUDA graph: %s has its rate on the host", name)
        return "gradient"
    return "step" if ranks.count == 1 else "halves"


def record(function: Callable[[], T]) -> Callable[[], T]:
    """Record `function` and return its replay as one launch, whose outputs the next launch overwrites.

    Raises RuntimeError, or a warning, if it cannot be recorded; its `__context__` may be what went wrong first.
    """
    gc.collect()  # freeing a dead graph or stream in the middle is not allowed
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    with _aside(), warnings.catch_warnings():
        warnings.filterwarnings("error", EMPTY)
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")  # another thread may be fetching pictures
        try:
            outputs = function()
        finally:
            try:
                graph.capture_end()
            except BaseException:
                _end_allocation(pool)
                raise

    def launch() -> T:
        graph.replay()
        return outputs

    return launch


def _end_allocation(pool: Any) -> None:
    """Tell the allocator that a recording is over: one that fails at its end leaves it waiting, and it frees no memory
    that two streams have used.
    """
    with contextlib.suppress(AttributeError, RuntimeError):  # this version has no such function, or it was told
        torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)


@functools.cache
def side_stream(device: int) -> torch.cuda.Stream:
    """The one stream of a device on which everything is recorded."""
    return torch.cuda.Stream(device)


@contextlib.contextmanager
def _aside() -> Iterator[None]:
    """Work on a stream that does nothing else, as CUDA asks of all that is recorded later."""
    stream, here = side_stream(torch.cuda.current_device()), torch.cuda.current_stream()
    stream.wait_stream(here)
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        here.wait_stream(stream)


class Captured(Generic[T]):
    """A function of tensors as a CUDA graph, recorded anew for other shapes. A call's outputs hold until the next.

    The first calls are ordinary ones, and the last of them is watched. `changed` returns the tensors that a call
    changes in place; `gradient` reads the meta-gradient of the last call from its outputs. What is recorded are the
    tasks of one call, and the graph's gradient for those of the next must be the eager one. A function that cannot be
    recorded, or whose graph is wrong, goes on without a graph, and the log says why.
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
        self._static: dict[Any, Any] = {}  # the inputs of the last ordinary call, where the graph will read them

    def __call__(self, *inputs: Any) -> T:
        shapes = shapes_of(tree_leaves(inputs))
        self.calls[shapes] = self.calls.get(shapes, 0) + 1
        if self.calls[shapes] > WARM_UP and shapes not in self.programs:
            self.programs[shapes] = self._record(self._static.pop(shapes), *inputs)
        if shapes in self.programs:
            return self.programs[shapes](*inputs)
        with _aside():
            return self.function(*inputs) if self.calls[shapes] < WARM_UP else self._watch(shapes, *inputs)

    def _watch(self, shapes: Any, *inputs: Any) -> T:
        """Call the function; if it does what no graph can hold, do not try to record it: that could end the process."""
        with Watch(tree_leaves(inputs)[0].device) as watch:
            outputs = self.function(*inputs)
        self._static[shapes] = tree_map(lambda x: x.detach().clone().requires_grad_(x.requires_grad), inputs)
        if watch.found:
            self.programs[shapes] = self._refuse("; ".join(watch.found))
        return outputs

    def _record(self, static: Any, *inputs: Any) -> Callable[..., T]:
        """Record the function at the static inputs and compare it at these; what a call changes is put back."""
        before = [tensor.detach().clone() for tensor in self.changed()]

        def run(function: Callable[..., T]) -> list[Tensor]:
            found = [g.clone() for g in self.gradient(function(*inputs))]
            self._restore(before)
            return found

        eager, again = run(self.function), run(self.function)
        try:
            launch = record(lambda: self.function(*static))
        except (RuntimeError, Warning) as error:
            self._restore(before)
            return self._refuse(describe_chain(error))

        def program(*inputs: Any) -> T:
            with torch.no_grad():
                torch._foreach_copy_(tree_leaves(static), tree_leaves(inputs))
            return launch()

        if difference := find_difference(run(program), eager, again):
            return self._refuse(difference)
        return program

    def _refuse(self, reason: str) -> Callable[..., T]:
        say.warning("%s not recorded as a CUDA graph: %s", self.what, reason)
        return self.function

    @torch.no_grad()
    def _restore(self, before: list[Tensor]) -> None:
        for tensor, value in zip(self.changed(), before, strict=True):
            tensor.copy_(value)


def capture_step(step: Callable[..., T], state: State) -> Captured[T]:
    """Record a whole step of training: tasks in, means out; theta and the optimiser's state change in place."""
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    return Captured("step", step, gradient=lambda means: [p.grad for p in parameters], changed=state.list_tensors)


def capture_descent(descent: Callable[[Theta], object], state: State) -> Captured[list[Tensor]]:
    """Record the second half of a step: gradient in; theta and the optimiser's state change in place."""

    def move(gradient: Theta) -> list[Tensor]:
        """Return how far each weight moved: what is compared."""
        weights = tree_leaves(state.theta)
        before = torch._foreach_add([p.detach() for p in weights], 0)
        descent(tree_map(torch.clone, gradient))  # clipping works in place, and a gradient is compared three times
        return list(torch._foreach_sub([p.detach() for p in weights], before))

    return Captured("descent", move, gradient=lambda moves: moves, changed=state.list_tensors)


def describe_chain(error: BaseException) -> str:
    """Each error in one line, the first cause first: what PyTorch raises last often hides it."""
    chain = []
    cause: BaseException | None = error
    while cause is not None:
        chain.append(f"{type(cause).__name__}: {str(cause).partition(chr(10))[0]}")
        cause = cause.__cause__ or cause.__context__
    return ", then ".join(reversed(chain))
