"""Time one MAML training step against `higher` and a plain PyTorch loop, once all give the same meta-gradient.

The work is Omniglot 5-way 1-shot as in Finn et al. 2017: four convolutions of 64 filters and stride 2, one inner
step, second order, Adam, on random images. All share one process and take turns, in an order that rotates.

    python scripts/benchmark.py --threads 1
"""

# ruff: noqa: E402  (torch is imported after the allocator is set)
import argparse
import contextlib
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from metarun.cli import prepare_cpu


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=10, help="timed steps of each implementation")
    parser.add_argument("--tasks", type=int, default=32, help="tasks in a step")
    parser.add_argument("--queries", type=int, default=1, help="query examples per class")
    parser.add_argument("--threads", type=int, help="PyTorch's threads on the CPU")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--allocator", choices=["tuned", "default"], default="tuned", help="glibc's, for all: as metarun sets it or not"
    )
    return parser.parse_args()


if __name__ == "__main__":
    OPTIONS = options()
    if OPTIONS.allocator == "tuned":
        prepare_cpu()

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from metarun.algos.maml import MAML
from metarun.backbones.conv4 import Conv4Strided
from metarun.environment import device_name
from metarun.execution import Execution, meta_gradient, unstack
from metarun.types import Episode, Examples, TaskSpec

WAYS, SHOTS, IMAGE, INNER_LR = 5, 1, (1, 28, 28), 0.4
TOLERANCE = 1e-9  # of the meta-gradients' relative difference, in float64
PLAIN = "plain loop"


class Network(nn.Module):
    """The network as one writes it for PyTorch; its parameters are named as metarun's."""

    def __init__(self, filters: int) -> None:
        super().__init__()
        widths = [IMAGE[0]] + 4 * [filters]
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, stride=2, padding=1, bias=False) for i, o in pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm2d(filters, eps=1e-3, track_running_stats=False) for _ in range(4))
        for norm in self.norms:
            norm.register_parameter("weight", None)  # shift, but no scale
        self.head = nn.Linear(filters, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms):
            x = F.relu(norm(conv(x)))
        return self.head(x.mean((-2, -1)))

    def adapted(self) -> dict[str, Tensor]:
        """All parameters but those of the norm layers."""
        return {name: p for name, p in self.named_parameters() if not name.startswith("norms.")}


@dataclass
class Contender:
    """An implementation: `backward` leaves the gradient of the mean loss over tasks in `parameters`."""

    name: str
    parameters: dict[str, Tensor]
    backward: Callable[[], None]

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.Adam(self.parameters.values(), lr=1e-3)

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.backward()
        self.optimizer.step()


def contenders(tasks: Episode, filters: int = 64) -> list[Contender]:
    """Every implementation there is, with the same weights and the same tasks."""
    reference = Network(filters).to(tasks.support.x)
    found = [by_metarun("vmap", reference, tasks), by_metarun("loop", reference, tasks)]
    with contextlib.suppress(ImportError):
        found.append(by_higher(reference, tasks))
    return [*found, by_plain_loop(reference, tasks)]


def by_metarun(execution: Execution, reference: Network, tasks: Episode) -> Contender:
    spec = TaskSpec("classification", IMAGE, WAYS)
    net = Conv4Strided(filters=reference.head.in_features, input_shape=IMAGE)
    maml = MAML(INNER_LR, 1, False, "batch", backbone=net, head=net.head(WAYS), spec=spec)
    theta = maml.init()
    weights = {}
    for component, params in theta.items():
        for name in params:
            full_name = f"head.{name}" if component == "head" else name
            params[name] = weights[full_name] = reference.get_parameter(full_name).detach().clone().requires_grad_()

    def backward() -> None:
        _, _, gradient = meta_gradient(maml, theta, tasks, execution=execution)
        for component, params in theta.items():
            for name, p in params.items():
                p.grad = gradient[component][name]

    return Contender(f"metarun, `execution={execution}`", weights, backward)


def by_higher(reference: Network, tasks: Episode) -> Contender:
    """Backward per task, as in higher's own MAML example; the inner optimiser holds what is adapted."""
    import higher

    net = copied(reference)
    inner = torch.optim.SGD(net.adapted().values(), lr=INNER_LR)

    def backward() -> None:
        for support, query in unstack(tasks):
            with higher.innerloop_ctx(net, inner, copy_initial_weights=False) as (fast_net, optimizer):
                optimizer.step(F.cross_entropy(fast_net(support.x), support.y))
                (F.cross_entropy(fast_net(query.x), query.y) / len(tasks.query.y)).backward()

    return Contender("higher", dict(net.named_parameters()), backward)


def by_plain_loop(reference: Network, tasks: Episode) -> Contender:
    """`torch.autograd.grad` for the inner step, backward per task."""
    net = copied(reference)

    def backward() -> None:
        weights = net.adapted()
        for support, query in unstack(tasks):
            loss = F.cross_entropy(net(support.x), support.y)
            gradient = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
            fast = {name: p - INNER_LR * g for (name, p), g in zip(weights.items(), gradient)}
            loss = F.cross_entropy(functional_call(net, fast, (query.x,)), query.y)
            (loss / len(tasks.query.y)).backward()

    return Contender(PLAIN, dict(net.named_parameters()), backward)


def copied(reference: Network) -> Network:
    net = Network(reference.head.in_features).to(reference.head.weight)
    net.load_state_dict(reference.state_dict())
    return net


def random_tasks(count: int, queries: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Episode:
    def examples(per_class: int) -> Examples:
        x = torch.rand(count, WAYS * per_class, *IMAGE, device=device, dtype=dtype)
        return Examples(x, torch.arange(WAYS, device=device).repeat(count, per_class))

    return Episode(examples(SHOTS), examples(queries))


def disagreements(found: list[Contender]) -> dict[str, float]:
    """Relative difference of each meta-gradient from the plain loop's."""

    def gradient(contender: Contender) -> Tensor:
        contender.backward()
        return torch.cat([p.grad.flatten() for _, p in sorted(contender.parameters.items()) if p.grad is not None])

    expected = gradient(found[-1])
    return {c.name: ((gradient(c) - expected).norm() / expected.norm()).item() for c in found[:-1]}


def measure(found: list[Contender], rounds: int, device: str = "cpu") -> dict[str, list[float]]:
    """Milliseconds of every step, after a warm-up; those of one round stand at one index."""
    times: dict[str, list[float]] = {contender.name: [] for contender in found}
    for contender in found:
        contender.step()
    for start in range(rounds):
        for contender in (found[(start + i) % len(found)] for i in range(len(found))):
            synchronize(device)
            began = time.perf_counter()
            contender.step()
            synchronize(device)
            times[contender.name].append(1000 * (time.perf_counter() - began))
    return times


def synchronize(device: str) -> None:
    if device != "cpu":
        torch.accelerator.synchronize(device)


def table(times: dict[str, list[float]], tasks: int) -> list[str]:
    """Markdown: the ratio is the median over rounds of plain time / this time."""
    lines = ["| implementation | ms per step | times the plain loop's speed | tasks per second |", "|---|--:|--:|--:|"]
    for name, row in times.items():
        middle = statistics.median(row)
        ratio = statistics.median(plain / this for plain, this in zip(times[PLAIN], row))
        lines.append(f"| {name} | {middle:.1f} | {ratio:.2f} | {1000 * tasks / middle:.0f} |")
    if "higher" not in times:
        lines.append("| higher | not installed | | |")
    return lines


def machine(device: str) -> str:
    return f"{device_name(torch.device(device))}, torch {torch.__version__}"


def main(args: argparse.Namespace) -> int:
    torch.manual_seed(0)
    if args.threads:
        torch.set_num_threads(args.threads)
    size = args.tasks, args.queries, args.device
    differences = disagreements(contenders(random_tasks(*size, torch.float64)))
    wrong = [name for name, difference in differences.items() if not difference <= TOLERANCE]
    for name in wrong:
        print(f"{name}: its float64 meta-gradient differs from the plain loop's by {differences[name]:.1e}")
    if wrong:
        return 1
    times = measure(contenders(random_tasks(*size)), args.rounds, args.device)
    print(*table(times, args.tasks), sep="\n")
    print(f"\n{machine(args.device)}; {args.allocator} allocator for all; medians of {args.rounds} interleaved rounds;")
    print(f"float64 meta-gradients agree to {max(differences.values()):.0e}.\n")
    print(f"    {shlex.join(['python', 'scripts/benchmark.py', *sys.argv[1:]])}")
    return 0


if __name__ == "__main__":
    sys.exit(main(OPTIONS))
