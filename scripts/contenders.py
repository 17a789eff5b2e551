"""The implementations that scripts/benchmark.py compares: each is told an item of work and gives a training step.

All start from the same weights and tasks. A contender is a function `(work, dtype) -> (step, gradient)`: `step` trains
once, with Adam outside; `gradient` is the meta-gradient of the mean loss, by names as metarun's.
"""

import contextlib
import multiprocessing
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from metarun.execution import unstack
from metarun.executor import Executor
from metarun.experiment import algorithm
from metarun.ranks import ALONE, Ranks, joined
from metarun.registry import build
from metarun.settings import TrainerSettings
from metarun.types import Algorithm, Episode, Examples, TaskSpec, Theta
from metarun.workers import prepare_cpu

Step = Callable[[], None]
Gradient = Callable[[], dict[str, Tensor]]
RATE = 1e-3  # of the outer Adam


@dataclass(frozen=True)
class Work:
    """An item of work. gflop: what a step needs where nothing is computed twice; None where it was not counted."""

    about: str
    algo: dict[str, Any]
    backbone: dict[str, Any]
    image: tuple[int, int, int]
    ways: int
    shots: int
    queries: int
    tasks: int
    gflop: float | None = None


def maml(lr: float, steps: int, first_order: bool = False) -> dict[str, Any]:
    return {"name": "maml", "inner_lr": lr, "inner_steps": steps, "first_order": first_order, "norm": "batch"}


STRIDED, POOLED = {"name": "conv4_strided", "filters": 64}, {"name": "conv4", "filters": 64}
SMALL, LARGE = (1, 28, 28), (3, 84, 84)
WORK = {
    "W1q1": Work("MAML, Omniglot 5-way 1-shot, 1 query", maml(0.4, 1), STRIDED, SMALL, 5, 1, 1, 32, 10.0),
    "W1q15": Work("MAML, Omniglot 5-way 1-shot, 15 queries", maml(0.4, 1), STRIDED, SMALL, 5, 1, 15, 32, 45.2),
    "W2so": Work("MAML, 84x84, 5 steps", maml(0.01, 5), {"name": "conv4", "filters": 32}, LARGE, 5, 1, 15, 4, 88.7),
    "W2fo": Work(
        "FOMAML, 84x84, 5 steps", maml(0.01, 5, True), {"name": "conv4", "filters": 32}, LARGE, 5, 1, 15, 4, 60.7
    ),
    "W3omni": Work(
        "ProtoNet, Omniglot 60-way 5-shot", {"name": "protonet", "norm": "running"}, POOLED, SMALL, 60, 5, 5, 1, 34.8
    ),
    "W3mini": Work(
        "ProtoNet, 84x84, 20-way 5-shot", {"name": "protonet", "norm": "running"}, POOLED, LARGE, 20, 5, 15, 1, 223.0
    ),
}


def tasks_of(work: Work, dtype: torch.dtype, device: str) -> Episode:
    generator = torch.Generator().manual_seed(0)

    def examples(per_class: int) -> Examples:
        x = torch.rand(work.tasks, work.ways * per_class, *work.image, generator=generator, dtype=torch.float64)
        return Examples(x.to(device, dtype), torch.arange(work.ways, device=device).repeat(work.tasks, per_class))

    return Episode(examples(work.shots), examples(work.queries))


def algo_of(work: Work, dtype: torch.dtype, device: str) -> tuple[Algorithm, Theta]:
    torch.manual_seed(0)
    backbone = build("backbone", work.backbone, input_shape=work.image)
    algo = algorithm(work.algo, backbone, TaskSpec("classification", work.image, work.ways))
    backbone.to(device, dtype)
    theta = {c: {n: p.to(device, dtype) for n, p in params.items()} for c, params in algo.init().items()}
    return algo, theta


# metarun itself ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Metarun:
    """metarun with the settings of its trainer."""

    execution: str = "vmap"
    chunk: int | None = None
    workers: int = 1
    compile: bool = False
    channels_last: bool = False

    @contextlib.contextmanager
    def ready(self, work: Work, dtype: torch.dtype, device: str) -> Iterator[tuple[Step, Gradient]]:
        with self._ranks(work, dtype) as ranks:
            run, theta = self._executor(work, dtype, device, ranks)
            optimizer = torch.optim.Adam([p for params in theta.values() for p in params.values()], lr=RATE)

            def gradient() -> dict[str, Tensor]:
                ranks.agreed(True)
                return {f"{c}.{n}": g for c, params in run(theta).items() for n, g in params.items()}

            def step() -> None:
                found = gradient()
                for component, params in theta.items():
                    for name, p in params.items():
                        p.grad = found[f"{component}.{name}"]
                optimizer.step()

            yield step, gradient
            ranks.agreed(False)

    def _executor(
        self, work: Work, dtype: torch.dtype, device: str, ranks: Ranks
    ) -> tuple[Callable[[Theta], Theta], Theta]:
        algo, theta = algo_of(work, dtype, device)
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
            precision="float32",
            channels_last=self.channels_last,
            clip_norm=None,
            clip_value=None,
            log_every=1,
            eval_every=1,
            patience=None,
            keep_best=1,
        )
        executor, tasks = Executor(algo, settings, ranks), tasks_of(work, dtype, device)
        return lambda theta: executor(theta, tasks)[2], theta

    @contextlib.contextmanager
    def _ranks(self, work: Work, dtype: torch.dtype) -> Iterator[Ranks]:
        if self.workers == 1:
            yield ALONE
            return
        store = dist.TCPStore("127.0.0.1", 0, self.workers, is_master=True, wait_for_workers=False)
        threads = max(1, torch.get_num_threads() // self.workers)
        for rank in range(1, self.workers):
            arguments = (self, work, dtype, rank, store.port, threads)
            multiprocessing.get_context("spawn").Process(target=follow, args=arguments, daemon=True).start()
        torch.set_num_threads(threads)
        with joined(0, self.workers, store) as ranks:
            yield ranks


def follow(metarun: Metarun, work: Work, dtype: torch.dtype, rank: int, port: int, threads: int) -> None:
    """Another rank: computes its share as often as rank 0 does. Its weights stay, which costs the same."""
    prepare_cpu()
    torch.set_num_threads(threads)
    store = dist.TCPStore("127.0.0.1", port, metarun.workers, is_master=False)
    with joined(rank, metarun.workers, store) as ranks:
        run, theta = metarun._executor(work, dtype, "cpu", ranks)
        while ranks.agreed(None):
            run(theta)


# the others ----------------------------------------------------------------------------------------------------------


class Network(nn.Module):
    """The same networks as one writes them for PyTorch; parameters are named as metarun's."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        filters = work.backbone["filters"]
        self.strided = work.backbone["name"] == "conv4_strided"
        widths = [work.image[0]] + 4 * [filters]
        stride, eps = (2, 1e-3) if self.strided else (1, 1e-5)
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, stride, padding=1, bias=False) for i, o in pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm2d(filters, eps=eps, track_running_stats=False) for _ in range(4))
        features = filters
        if self.strided:
            for norm in self.norms:
                norm.register_parameter("weight", None)  # shift, but no scale
        else:
            features *= (work.image[1] // 16) ** 2
        self.head = nn.Linear(features, work.ways) if work.algo["name"] == "maml" else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms):
            x = F.relu(norm(conv(x)))
            x = x if self.strided else F.max_pool2d(x, 2)
        return self.head(x.mean((-2, -1)) if self.strided else x.flatten(1))

    def adapted(self) -> dict[str, Tensor]:
        """All parameters but those of the norm layers."""
        return {name: p for name, p in self.named_parameters() if not name.startswith("norms.")}


def network(work: Work, dtype: torch.dtype, device: str) -> Network:
    """With metarun's starting weights."""
    net = Network(work).to(device, dtype)
    for component, params in algo_of(work, dtype, device)[1].items():
        for name, value in params.items():
            net.get_parameter(f"head.{name}" if component == "head" else name).data.copy_(value)
    return net


def named(net: Network) -> dict[str, Tensor]:
    def component(name: str) -> str:
        return name if name.startswith("head.") else f"{'norm' if name.startswith('norms.') else 'backbone'}.{name}"

    return {component(name): p.grad for name, p in net.named_parameters() if p.grad is not None}


Backward = Callable[[Network, Work, Episode], None]  # leaves the gradient of the mean loss in the network


def trained_by(
    prepare: Callable[[Network, Work], Callable[[Episode], None]], work: Work, dtype: torch.dtype, device: str
) -> tuple[Step, Gradient]:
    net, tasks = network(work, dtype, device), tasks_of(work, dtype, device)
    backward = prepare(net, work)
    optimizer = torch.optim.Adam(net.parameters(), lr=RATE)

    def gradient() -> dict[str, Tensor]:
        optimizer.zero_grad()
        for task in unstack(tasks):
            backward(task)
        for p in net.parameters():
            p.grad = None if p.grad is None else p.grad / work.tasks
        return named(net)

    def step() -> None:
        gradient()
        optimizer.step()

    return step, gradient


def plain(net: Network, work: Work) -> Callable[[Episode], None]:
    """`torch.autograd.grad` for the inner steps, a backward per task."""

    def backward(task: Episode) -> None:
        support, query = task
        if work.algo["name"] == "protonet":
            z = net(torch.cat([support.x, query.x])).view(len(support.y) + len(query.y), -1)
            z_support, z_query = z[: len(support.y)], z[len(support.y) :]
            prototypes = torch.stack([z_support[support.y == k].mean(0) for k in range(work.ways)])
            F.cross_entropy(-(z_query[:, None] - prototypes).square().sum(-1), query.y).backward()
            return
        fast = net.adapted()
        for _ in range(work.algo["inner_steps"]):
            loss = F.cross_entropy(functional_call(net, fast, (support.x,)), support.y)
            gradient = torch.autograd.grad(loss, list(fast.values()), create_graph=not work.algo["first_order"])
            fast = {name: p - work.algo["inner_lr"] * g for (name, p), g in zip(fast.items(), gradient)}
        F.cross_entropy(functional_call(net, fast, (query.x,)), query.y).backward()

    return backward


def by_higher(net: Network, work: Work) -> Callable[[Episode], None]:
    """As in its own MAML example; the inner optimiser holds what is adapted."""
    with warnings.catch_warnings():  # its source is of an older Python
        warnings.simplefilter("ignore")
        import higher

    inner = torch.optim.SGD(net.adapted().values(), lr=work.algo["inner_lr"])
    track = not work.algo["first_order"]

    def backward(task: Episode) -> None:
        support, query = task
        with higher.innerloop_ctx(net, inner, copy_initial_weights=False, track_higher_grads=track) as (
            fast,
            optimizer,
        ):
            for _ in range(work.algo["inner_steps"]):
                optimizer.step(F.cross_entropy(fast(support.x), support.y))
            loss = F.cross_entropy(fast(query.x), query.y)
            if track:
                loss.backward()
            else:  # higher leaves first-order gradients at the adapted weights
                for p, g in zip(net.parameters(), torch.autograd.grad(loss, list(fast.parameters()))):
                    p.grad = g if p.grad is None else p.grad + g

    return backward


def by_torchopt(net: Network, work: Work) -> Callable[[Episode], None]:
    """As in its own MAML example: MetaSGD, the network's state restored after each task."""
    import torchopt

    inner = torchopt.MetaSGD(net, lr=work.algo["inner_lr"])

    def backward(task: Episode) -> None:
        support, query = task
        state = torchopt.extract_state_dict(net, by="reference"), torchopt.extract_state_dict(inner, by="reference")
        for _ in range(work.algo["inner_steps"]):
            inner.step(F.cross_entropy(net(support.x), support.y))
        F.cross_entropy(net(query.x), query.y).backward()
        torchopt.recover_state_dict(net, state[0])
        torchopt.recover_state_dict(inner, state[1])

    return backward


def by_learn2learn(net: Network, work: Work) -> Callable[[Episode], None]:
    import learn2learn

    learner = learn2learn.algorithms.MAML(net, lr=work.algo["inner_lr"], first_order=work.algo["first_order"])

    def backward(task: Episode) -> None:
        support, query = task
        fast = learner.clone()
        for _ in range(work.algo["inner_steps"]):
            fast.adapt(F.cross_entropy(fast(support.x), support.y))
        F.cross_entropy(fast(query.x), query.y).backward()

    return backward


PEERS = {"plain loop": plain, "higher": by_higher, "torchopt": by_torchopt, "learn2learn": by_learn2learn}
ADAPTS_NORMS = ("torchopt", "learn2learn")  # they adapt every parameter: another gradient, nearly the same work
