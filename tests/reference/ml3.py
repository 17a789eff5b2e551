"""A new network from a hash in Python's own integers, trained by a loss that is written out example by example."""

from typing import Any

import torch
from torch import Tensor

from tests.reference.plain import Theta, loss, predict

SETTINGS = {"form": "mlp", "hidden": [6, 5], "inner_lr": 0.2, "inner_steps": 2, "norm": "batch"}


def plain_loss(
    backbone_name: str, theta: Theta, episode: Any, *, form: str, hidden: list[int], inner_lr: float, inner_steps: int
) -> Tensor:
    support, query = episode
    norm = {name: p.detach() for name, p in theta["norm"].items()}
    phi = {c: {name: p.detach().requires_grad_() for name, p in theta[c].items()} for c in ("backbone", "head")}
    names = [(component, name) for component in phi for name in phi[component]]
    for _ in range(inner_steps):
        prediction = predict(backbone_name, phi | {"norm": norm}, support.x)
        learned = learned_loss(theta["loss"], form, prediction, support.y)
        gradient = torch.autograd.grad(learned, [phi[c][name] for c, name in names], create_graph=True)
        stepped: Theta = {component: {} for component in phi}
        for (component, name), g in zip(names, gradient):
            stepped[component][name] = phi[component][name] - inner_lr * g
        phi = stepped
    pull = torch.tensor(0.0, dtype=torch.float64)
    following = int(theta["salt"]["learner"]) + int(theta["clock"]["step"]) + 1
    for (component, name), values in zip(names, learner(theta, names, following)):
        pull = pull + ((theta[component][name] - values) ** 2).sum() / 2
    return loss(predict(backbone_name, phi | {"norm": norm}, query.x), query.y) + pull - pull.detach()


def learner(theta: Theta, names: list[tuple[str, str]], number: int) -> list[Tensor]:
    """Weights and biases uniform within 1 / sqrt(fan-in), one after another from the hash of the learner's number."""
    found, drawn = [], 0
    for component, name in names:
        p = theta[component][name]
        weight = p if name.endswith("weight") else theta[component][name.removesuffix("bias") + "weight"]
        values = [mixed(i + mixed(number)) / 2**31 - 1 for i in range(drawn, drawn + p.numel())]
        found.append(torch.tensor(values, dtype=p.dtype).view(p.shape) / (weight.numel() / len(weight)) ** 0.5)
        drawn += p.numel()
    return found


def mixed(x: int) -> int:
    """Wellons' lowbias32."""
    x %= 2**32
    x = (x ^ x >> 16) * 0x7FEB352D % 2**32
    x = (x ^ x >> 15) * 0x846CA68B % 2**32
    return x ^ x >> 16


def learned_loss(w: dict[str, Tensor], form: str, prediction: Tensor, y: Tensor) -> Tensor:
    if form == "scaled":
        return w["scale"] * loss(prediction, y)
    rows = []
    for output, label in zip(prediction, y):
        if y.is_floating_point():
            pairs = list(zip(output, label))
        else:
            p = output.exp() / output.exp().sum()
            pairs = [(p[k], torch.tensor(float(k == int(label)), dtype=p.dtype)) for k in range(len(p))]
        rows.append(torch.stack([of_pair(w, form, p, t) for p, t in pairs]).sum())
    return torch.stack(rows).mean()


def of_pair(w: dict[str, Tensor], form: str, p: Tensor, y: Tensor) -> Tensor:
    if form == "cubic":
        terms = {"p": p, "p2": p * p, "py": p * y, "p3": p * p * p, "p2y": p * p * y, "py2": p * y * y}
        return torch.stack([w[name] * term for name, term in terms.items()]).sum()
    h = torch.stack([p, y])
    for i in range(len(w) - 1):
        h = (w[f"{i}.weight"] @ h).clamp(min=0)
    return (1 + (w[f"{len(w) - 1}.weight"] @ h).exp()).log()[0]
