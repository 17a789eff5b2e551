"""`torch.cuda` without a GPU: work is done on the CPU, and a graph is a tape of operations."""

import contextlib
import warnings
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from metarun.engine.capture import side_stream


def place(value: Any) -> Any:
    """A tensor's memory and its shape now, which may be changed in place."""
    return value.detach() if isinstance(value, Tensor) else value


class Tape(TorchDispatchMode):
    """Records what a device would do: operations, the tensors they read, those they write. Replaying runs no Python
    of the recorded function, as a CUDA graph does not; and as there, what would wait for the device is refused.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.entries: list[tuple[Any, ...]] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}  # memory that recording changed, and what was there
        self.made: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.lift_fresh.default):
            raise RuntimeError(f"operation not permitted when stream is capturing: {function}")
        for value, argument in zip(args, function._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self._keep(value)
        places = tree_map(place, (args, kwargs or {}))
        outputs = function(*args, **(kwargs or {}))
        if all(value.alias_info is None for value in function._schema.returns):
            self.made |= {t.untyped_storage().data_ptr() for t in tree_leaves(outputs) if isinstance(t, Tensor)}
        self.entries.append((function, *places, tree_map(place, outputs)))
        return outputs

    def _keep(self, value: Any) -> None:
        for tensor in tree_leaves(value):
            if (at := tensor.untyped_storage().data_ptr()) not in self.before and at not in self.made:
                self.before[at] = place(tensor), tensor.detach().clone()

    @torch.no_grad()
    def undo(self) -> None:
        """Recording has no effect."""
        for tensor, value in self.before.values():
            tensor.copy_(value)

    @torch.no_grad()
    def replay(self) -> None:
        for function, args, kwargs, outputs in self.entries:
            again = function(*args, **kwargs)
            if all(value.alias_info is None for value in function._schema.returns):
                for old, new in zip(tree_leaves(outputs), tree_leaves(again), strict=True):
                    if isinstance(old, Tensor):
                        old.copy_(new)


class FakeGraph:
    """As `torch.cuda.CUDAGraph`, with its habit of hiding the error that ended a recording behind one of its own."""

    elsewhere = False  # work goes to another device: nothing is recorded

    def capture_begin(self, pool: Any = None, capture_error_mode: str = "global") -> None:
        assert capture_error_mode == "thread_local"
        assert torch.cuda.current_stream() != "default", "recorded on the default stream"
        self.tape = Tape()
        self.tape.__enter__()  # type: ignore[no-untyped-call]

    def capture_end(self) -> None:
        import sys

        failed = sys.exc_info()[0] is not None
        self.tape.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        if self.elsewhere:
            self.tape.entries.clear()
        else:
            self.tape.undo()
        if failed:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
        if not self.tape.entries:
            warnings.warn("The CUDA Graph is empty. This usually means the wrong device or stream.", stacklevel=2)

    def replay(self) -> None:
        self.tape.replay()


class FakeStream(str):
    """A stream, by name."""

    def wait_stream(self, other: str) -> None: ...


class FakeCuda:
    """The current device and stream of `torch.cuda`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, devices: int = 2) -> None:
        self.device, self.stream = 0, FakeStream("default")
        side_stream.cache_clear()
        replaced: dict[str, Any] = {
            "device_count": lambda: devices,
            "current_device": lambda: self.device,
            "set_device": self.set_device,
            "synchronize": lambda: None,
            "empty_cache": lambda: None,
            "CUDAGraph": FakeGraph,
            "graph_pool_handle": lambda: (0, 1),
            "Stream": lambda device: FakeStream(f"side of {device}"),
            "current_stream": lambda: self.stream,
            "stream": self.use,
        }
        for name, value in replaced.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(import_module("torch.optim.adam"), "_get_capturable_supported_devices", lambda **_: ["cpu"])

    def set_device(self, device: torch.device) -> None:
        assert device.index is not None
        self.device = device.index

    @contextlib.contextmanager
    def use(self, stream: FakeStream) -> Iterator[None]:
        before, self.stream = self.stream, stream
        try:
            yield
        finally:
            self.stream = before
