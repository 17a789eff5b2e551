"""The implementations that metarun is compared with: plain PyTorch, and the libraries that are installed here."""

import copy
import importlib.util
import warnings
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from workload import Gradient, Step, Work, make_algo, make_optimizer, make_tasks

from metarun.config.registry import traits_of
from metarun.core.batch import unstack
from metarun.core.types import Episode

PLAIN = "plain loop"


class Network(nn.Module):
    """metarun's networks, written the usual way for PyTorch; parameters have metarun's names."""

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
        self.head = nn.Linear(features, work.ways) if work.algo["name"] != "protonet" else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms):
            x = F.relu(norm(conv(x)))
            x = x if self.strided else F.max_pool2d(x, 2)
        logits: Tensor = self.head(x.mean((-2, -1)) if self.strided else x.flatten(1))
        return logits

    def adaptable(self) -> dict[str, Tensor]:
        """All parameters but those of the norm layers."""
        return {name: p for name, p in self.named_parameters() if not name.startswith("norms.")}


def build_network(work: Work, dtype: torch.dtype, device: str) -> Network:
    """Build the network with metarun's starting weights."""
    net = Network(work).to(device, dtype)
    algo, theta = make_algo(work, dtype, device)
    for component in theta.keys() - set(traits_of(algo).carried):
        for name, value in theta[component].items():
            net.get_parameter(f"head.{name}" if component == "head" else name).data.copy_(value)
    return net


def gradients_by_name(net: Network) -> dict[str, Tensor]:
    """The gradients of the last backward pass, under metarun's names."""

    def component(name: str) -> str:
        return name if name.startswith("head.") else f"{'norm' if name.startswith('norms.') else 'backbone'}.{name}"

    return {component(name): p.grad for name, p in net.named_parameters() if p.grad is not None}


Backward = Callable[[Episode], None]  # adds a gradient to what the network has: of one task, or the mean over a batch
Peer = Callable[[Network, Work], Backward]


def over_tasks(peer: Peer, net: Network, work: Work) -> Backward:
    """What a peer does that takes one task at a time, for a batch of tasks."""
    backward = peer(net, work)

    def whole(tasks: Episode) -> None:
        for task in unstack(tasks):
            backward(task)
        for p in net.parameters():
            p.grad = None if p.grad is None else p.grad / work.tasks

    return whole


def train_by(peer: Peer, work: Work, dtype: torch.dtype, device: str) -> tuple[Step, Gradient]:
    """The training step and the meta-gradient of a peer."""
    net, tasks = build_network(work, dtype, device), make_tasks(work, dtype, device)
    backward = peer(net, work)
    optimizer = make_optimizer(work, [{"params": list(net.parameters())}])

    def gradient() -> dict[str, Tensor]:
        optimizer.zero_grad()
        backward(tasks)
        return gradients_by_name(net)

    def step() -> None:
        gradient()
        optimizer.step()

    return step, gradient


def plain_maml(net: Network, work: Work) -> Backward:
    """MAML by `torch.autograd.grad` for the inner steps and one backward per task."""

    def backward(task: Episode) -> None:
        support, query = task
        fast = net.adaptable()
        for _ in range(work.algo["inner_steps"]):
            loss = F.cross_entropy(functional_call(net, fast, (support.x,)), support.y)
            gradient = torch.autograd.grad(loss, list(fast.values()), create_graph=not work.algo["first_order"])
            fast = {name: p - work.algo["inner_lr"] * g for (name, p), g in zip(fast.items(), gradient)}
        F.cross_entropy(functional_call(net, fast, (query.x,)), query.y).backward()

    return backward


def plain_protonet(net: Network, work: Work) -> Backward:
    """ProtoNet with one forward pass and one backward per task."""

    def backward(task: Episode) -> None:
        support, query = task
        z = net(torch.cat([support.x, query.x])).view(len(support.y) + len(query.y), -1)
        z_support, z_query = z[: len(support.y)], z[len(support.y) :]
        prototypes = torch.stack([z_support[support.y == k].mean(0) for k in range(work.ways)])
        F.cross_entropy(-(z_query[:, None] - prototypes).square().sum(-1), query.y).backward()

    return backward


def plain_reptile(net: Network, work: Work, fused: bool | None = None) -> Backward:
    """Reptile: a copy of the network learns each task with its own Adam, in one pass over balanced minibatches.

    Every parameter can be compared. A convolution with a bias in front of its norm layer would have a true gradient of
    zero, which Adam turns into full steps of rounding noise; these have no bias.
    """
    fast, algo = copy.deepcopy(net), work.algo

    def backward(task: Episode) -> None:
        x, y = task.support
        fast.load_state_dict(net.state_dict())
        betas = (0.0, algo["beta2"])
        optimizer = torch.optim.Adam(fast.parameters(), algo["inner_lr"], betas, algo["eps"], fused=fused)
        order = torch.arange(len(y), device=y.device).view(work.ways, -1).T.flatten()
        for rows in order.split(algo["inner_batch"]):
            optimizer.zero_grad()
            F.cross_entropy(fast(x[rows]), y[rows]).backward()
            optimizer.step()
        for p, q in zip(net.parameters(), fast.parameters()):
            pull = p.detach() - q.detach()
            p.grad = pull if p.grad is None else p.grad + pull

    return backward


def by_higher(net: Network, work: Work) -> Backward:
    """MAML as in higher's own example; the inner optimiser holds the parameters that are adapted."""
    with warnings.catch_warnings():  # higher was written for an older Python
        warnings.simplefilter("ignore")
        import higher

    inner = torch.optim.SGD(net.adaptable().values(), lr=work.algo["inner_lr"])
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


def by_torchopt(net: Network, work: Work) -> Backward:
    """MAML as in torchopt's own example: MetaSGD, with the network's state restored after each task."""
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


def by_learn2learn(net: Network, work: Work) -> Backward:
    """MAML as in learn2learn's own example."""
    import learn2learn

    learner = learn2learn.algorithms.MAML(net, lr=work.algo["inner_lr"], first_order=work.algo["first_order"])

    def backward(task: Episode) -> None:
        support, query = task
        fast = learner.clone()
        for _ in range(work.algo["inner_steps"]):
            fast.adapt(F.cross_entropy(fast(support.x), support.y))
        F.cross_entropy(fast(query.x), query.y).backward()

    return backward


class Named(nn.Module):
    """A network in the form that parallel-metalearn asks for."""

    def __init__(self, net: Network) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, **about: object) -> dict[str, object]:
        return {"logits": self.net(x), "buffers": {}}

    def get_fast_weights(self) -> dict[str, nn.Parameter]:
        return {f"net.{name}": p for name, p in self.net.named_parameters() if name in self.net.adaptable()}


def by_parallel_metalearn(net: Network, work: Work) -> Backward:
    """MAML as in parallel-metalearn's own example, all tasks in one vmap; its outer step has rate 0."""
    from metalearn.algorithms import MAML
    from metalearn.inner_optimizers import InnerSGD
    from metalearn.loss import CategoricalAccuracy, CrossEntropy

    model, lr, first_order = Named(net), work.algo["inner_lr"], work.algo["first_order"]
    inner = InnerSGD(model.get_fast_weights(), first_order, lr, learn_lr=False)
    for p in inner.parameters():  # it rounds the rate to float32
        p.data = torch.full_like(p, lr, dtype=next(net.parameters()).dtype)
    learner = MAML(
        model=model,
        optimizer=torch.optim.SGD(net.parameters(), lr=0.0),
        inner_optimizer=inner,
        support_loss_fn=CrossEntropy(CategoricalAccuracy()),
        inner_steps=work.algo["inner_steps"],
        chunk_size=work.tasks,
        device=next(net.parameters()).device,
    )

    def backward(tasks: Episode) -> None:
        support, query = tasks
        learner.step(iter([(support.x, {"labels": support.y}, query.x, {"labels": query.y})]))

    return backward


LIBRARIES: dict[str, tuple[str, Peer]] = {  # package -> name, how
    "higher": ("higher", partial(over_tasks, by_higher)),
    "torchopt": ("torchopt", partial(over_tasks, by_torchopt)),
    "learn2learn": ("learn2learn", partial(over_tasks, by_learn2learn)),
    "metalearn": ("parallel-metalearn", by_parallel_metalearn),
}
ADAPTS_NORMS = ("torchopt", "learn2learn")  # adapt norm layers too: another gradient, nearly the same work


def peers_for(work: Work) -> dict[str, Peer]:
    """The peers that can do this work and are installed, the plain loop first."""
    if work.algo["name"] == "protonet":
        return {PLAIN: partial(over_tasks, plain_protonet)}
    if work.algo["name"] == "reptile":
        fused = partial(plain_reptile, fused=True)
        return {PLAIN: partial(over_tasks, plain_reptile), f"{PLAIN}, fused Adam": partial(over_tasks, fused)}
    installed = dict(found for package, found in LIBRARIES.items() if importlib.util.find_spec(package))
    return {PLAIN: partial(over_tasks, plain_maml), **installed}
