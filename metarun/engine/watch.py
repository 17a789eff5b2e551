"""What a step must not ask of a GPU, found by watching every operation: on the GPU itself, or on `meta`, PyTorch's
device of shapes without numbers, which stands in for one where there is none.
"""

import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
WAITS = {  # the host needs a number, a size or an error code of the result
    *(aten._local_scalar_dense, aten.equal, aten.is_nonzero, aten.nonzero, aten.masked_select, aten.bincount),
    *(aten._unique2, aten.unique_dim, aten.unique_consecutive, aten._linalg_check_errors, aten.linalg_lstsq),
    *(aten._linalg_eigh, aten.linalg_eig, aten._linalg_svd),
}
INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}
COPIES = {aten._to_copy, aten.copy_, aten.copy}
FROM_HOST = {torch.tensor, torch.as_tensor, torch.asarray}
PACKAGE = Path(__file__).parents[1]
SKIPPED = (str(Path(torch.__file__).parent), sysconfig.get_path("stdlib"), __file__)


class Watch:
    """Collect in `found`, while entered, what is asked of tensors of `device` that a CUDA graph cannot hold: waiting
    for the device, copies between it and the host, and operations on tensors of both. Each has the file and line.

    float64: whether the device has such numbers.
    """

    def __init__(self, device: torch.device, float64: bool = True) -> None:
        self.kind, self.float64 = device.type, float64
        self.found: dict[str, None] = {}  # in order, each once
        self._modes = (_Functions(self), _Operations(self))

    def __enter__(self) -> Self:
        for mode in self._modes:
            mode.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(kind, error, at)  # type: ignore[no-untyped-call]

    def is_here(self, value: Any) -> bool:
        """Return whether it is a tensor of the device."""
        return isinstance(value, Tensor) and value.device.type == self.kind

    def note(self, what: str) -> None:
        self.found.setdefault(f"{find_line()}: {what}")


class _Functions(TorchFunctionMode):
    """Sees tensors that are made of Python's numbers: no operation of the device shows them."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is Tensor.new_tensor and self.watch.is_here(args[0]) and not self.watch.is_here(args[-1]):
            self.watch.note("new_tensor copies numbers from the host")  # before it fails, as within vmap on meta
        made = function(*args, **(kwargs or {}))
        if function in FROM_HOST and self.watch.is_here(made) and not any(map(self.watch.is_here, args[-1:])):
            self.watch.note(f"{function.__name__} copies numbers from the host")
        return made


class _Operations(TorchDispatchMode):
    """Sees every operation, those of derivatives included."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.watch = watch

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.watch.kind == "meta" and "generator" in kwargs:
            kwargs = {**kwargs, "generator": None}  # not all operations take one there, and no number is drawn
        if fault := self._judge(function, args, kwargs):
            self.watch.note(f"{function} {fault}")
        made = function(*args, **kwargs)
        if not self.watch.float64 and any(
            self.watch.is_here(t) and t.dtype == torch.float64 for t in tree_leaves(made)
        ):
            self.watch.note(f"{function} makes float64, which this device may not have")
        return made

    def _judge(self, function: Any, args: Any, kwargs: Any) -> str | None:
        kind, tensors = function.overloadpacket, [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        here = [self.watch.is_here(t) for t in tensors]
        if kind in COPIES:
            to = kwargs.get("device")
            sides = {*here, to.type == self.watch.kind} if to is not None else {*here}
            return "copies between the device and the host" if len(sides) > 1 else None
        if not any(here):
            return None
        if kind in WAITS or (kind is aten.repeat_interleave and kwargs.get("output_size") is None):
            return "waits for the device"
        if kind in INDEXED and any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1]):
            return "by a mask waits for the device"
        if any(t.dim() > 0 and not on for t, on in zip(tensors, here)):  # a number is handed over by value
            return "has tensors of the host and of the device"
        return None


def find_line() -> str:
    """The innermost line outside of PyTorch and Python: who asks."""
    for frame in reversed(traceback.extract_stack()):
        if not frame.filename.startswith((*SKIPPED, "<")) or "site-packages" in frame.filename.removeprefix(SKIPPED[0]):
            path = Path(frame.filename)
            where = path.relative_to(PACKAGE.parent) if path.is_relative_to(PACKAGE) else path
            return f"{where}:{frame.lineno}"
    return "in a derivative"


def watch_call(function: Callable[[], Any], device: torch.device, float64: bool = True) -> list[str]:
    """Call the function and return what was found. An error counts as found if nothing was found before."""
    with Watch(device, float64) as watch:
        try:
            function()
        except Exception:
            if not watch.found:
                raise
    return list(watch.found)
