"""The implementations that scripts/benchmark.py can time, by name: metarun with several settings, and its peers."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from peers import ADAPTS_NORMS, PLAIN, peers_for, train_by
from torch import Tensor
from workload import Gradient, Step, Work, make_algo, make_optimizer, make_tasks

from metarun.config.registry import traits_of
from metarun.config.schema import TrainerSettings
from metarun.core.types import Episode, Metrics, Theta
from metarun.engine.build import allow_tf32
from metarun.engine.capture import capture_step
from metarun.engine.distributed import Ranks, join_ranks, start_ranks
from metarun.engine.loop import descend
from metarun.engine.optimizers import move_rates
from metarun.engine.plan import MetaGradient
from metarun.engine.process import prepare_cpu
from metarun.engine.state import State, Window

GRAPHS: dict[str, dict[str, Any]] = {  # metarun's settings on a CUDA device
    "metarun, graph": {"cuda_graph": True},
    "metarun, graph of loop": {"cuda_graph": True, "execution": "loop"},
    "metarun, graph, tf32": {"cuda_graph": True, "precision": "tf32"},
    "metarun, graph of loop, bfloat16": {"cuda_graph": True, "execution": "loop", "precision": "bfloat16"},
    "metarun, graph, channels_last": {"cuda_graph": True, "channels_last": True},
    "metarun, graph, compiled": {"cuda_graph": True, "compile": True},
}
OWN: dict[str, dict[str, Any]] = {  # metarun's settings
    "metarun": {},
    "metarun, loop": {"execution": "loop"},
    "metarun, channels_last": {"channels_last": True},
    "metarun, 2 workers": {"workers": 2},
    "metarun, loop, 2 workers": {"execution": "loop", "workers": 2},
    "metarun, loop, channels_last, 2 workers": {"execution": "loop", "channels_last": True, "workers": 2},
    "metarun, vmap of 4, 2 workers": {"chunk": 4, "workers": 2},
    "metarun, compiled, loop, channels_last, 2 workers": {
        "execution": "loop",
        "compile": True,
        "channels_last": True,
        "workers": 2,
    },
    **GRAPHS,
}


def implementations(work: Work, device: str) -> list[str]:
    """The names of those that can do this work on this device, the plain loop first."""
    shared, graphs = device == "cpu" and work.tasks > 1, device.startswith("cuda")
    able = [name for name, how in OWN.items() if shared or how.get("workers", 1) == 1]
    return [*peers_for(work), *(name for name in able if graphs or name not in GRAPHS)]


def implementation(
    name: str, work: Work, dtype: torch.dtype, device: str, **changes: Any
) -> contextlib.AbstractContextManager[tuple[Step, Gradient]]:
    """A context with the step and the meta-gradient of a peer, or of metarun with `OWN[name]` and `changes`."""
    if name in OWN:
        return Metarun(**{**OWN[name], **changes}).ready(work, dtype, device)
    return contextlib.nullcontext(train_by(peers_for(work)[name], work, dtype, device))


def disagreement(name: str, work: Work, device: str) -> float:
    """The largest relative difference, over the parameters, of the float64 meta-gradient from the plain loop's."""

    def plain(net: Any, work: Work) -> Any:
        if name in ADAPTS_NORMS:
            net.adaptable = lambda: dict(net.named_parameters())
        return peers_for(work)[PLAIN](net, work)

    with implementation(name, work, torch.float64, device, workers=1) as (_, gradient):
        found = gradient()
    _, expected = train_by(plain, work, torch.float64, device)
    differences = [(found[key] - g).norm() / g.norm() for key, g in expected().items() if g.norm() > 0]
    return float(torch.stack(differences).max())


@dataclass(frozen=True)
class Metarun:
    """metarun with some of its trainer's settings."""

    execution: str = "vmap"
    chunk: int | None = None
    workers: int = 1
    compile: bool = False
    channels_last: bool = False
    cuda_graph: bool = False
    precision: str = "float32"

    @contextlib.contextmanager
    def ready(self, work: Work, dtype: torch.dtype, device: str) -> Iterator[tuple[Step, Gradient]]:
        with self._ranks(work, dtype) as ranks:
            meta_gradient, theta, tasks = self.prepare(work, dtype, device, ranks)
            carried, window = traits_of(meta_gradient.algo).carried, Window()
            learned = [list(theta[component].values()) for component in theta if component not in carried]
            optimizer = make_optimizer(work, [{"params": params} for params in learned if params])
            if device.startswith("cuda"):
                move_rates(optimizer, torch.device(device))
            allow_tf32(self.precision == "tf32")

            def take_step(tasks: Episode) -> Metrics:
                loss, metrics, found = meta_gradient(theta, tasks)
                descend(theta, found, optimizer, meta_gradient.settings, carried)
                return {"loss": loss, **metrics}

            taken = capture_step(take_step, State(theta, optimizer)) if self.cuda_graph else take_step

            def gradient() -> dict[str, Tensor]:
                ranks.broadcast(True)
                return {
                    f"{c}.{n}": g for c, params in meta_gradient(theta, tasks)[2].items() for n, g in params.items()
                }

            def step() -> None:
                """Do what the loop does with the tasks of a step.

                The peers compute less: no metrics, and for Reptile no moments that outlive a task.
                """
                ranks.broadcast(True)
                window.add(taken(tasks))

            yield step, gradient
            ranks.broadcast(False)

    def prepare(self, work: Work, dtype: torch.dtype, device: str, ranks: Ranks) -> tuple[MetaGradient, Theta, Episode]:
        algo, theta = make_algo(work, dtype, device)
        order = torch.channels_last if self.channels_last else torch.preserve_format
        for params in theta.values():
            for name, p in params.items():
                params[name] = p.contiguous(memory_format=order if p.dim() == 4 else torch.preserve_format)
                params[name].requires_grad_()
        settings = TrainerSettings(
            steps=1,
            tasks_per_step=work.tasks,
            tasks_per_chunk=self.chunk,
            execution=self.execution,  # type: ignore[arg-type]
            workers=self.workers,
            compile=self.compile,
            cuda_graph=self.cuda_graph,
            precision=self.precision,  # type: ignore[arg-type]
            channels_last=self.channels_last,
            clip_norm=None,
            clip_value=None,
            log_every=1,
            eval_every=1,
            patience=None,
            keep_best=1,
        )
        return MetaGradient(algo, settings, ranks), theta, make_tasks(work, dtype, device)

    @contextlib.contextmanager
    def _ranks(self, work: Work, dtype: torch.dtype) -> Iterator[Ranks]:
        with start_ranks(self.workers, torch.device("cpu"), follow, (self, work, dtype)) as ranks:
            yield ranks


def follow(rank: int, count: int, port: int, threads: int, metarun: Metarun, work: Work, dtype: torch.dtype) -> None:
    """Compute another rank's share as often as rank 0 does. Its weights stay, which costs the same."""
    prepare_cpu()
    with join_ranks(rank, count, port, threads) as ranks:
        meta_gradient, theta, tasks = metarun.prepare(work, dtype, "cpu", ranks)
        while ranks.broadcast(None):
            meta_gradient(theta, tasks)
