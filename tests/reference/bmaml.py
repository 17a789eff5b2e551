"""Particle by particle, pair by pair: the weights of each in a vector, whose kernel autograd differentiates."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical, Normal

from tests.reference.plain import Theta, predict

SETTINGS = {"particles": 3, "inner_lr": 0.05, "inner_steps": 2, "leader_steps": 1, "norm": "batch"}
EXACT = False  # the chaser loss holds the leader fixed, and the steps the kernel's bandwidth


def plain_loss(
    backbone_name: str,
    theta: Theta,
    episode: Any,
    *,
    particles: int,
    inner_lr: float,
    inner_steps: int,
    leader_steps: int,
) -> Tensor:
    support, query = episode
    names, stacked = list(theta["particles"]), theta["particles"]
    shapes = [stacked[name].shape[1:] for name in names]
    vectors = [torch.cat([stacked[name][m].flatten() for name in names]) for m in range(particles)]

    def log_likelihood(vector: Tensor, x: Tensor, y: Tensor) -> Tensor:
        pieces = vector.split([math.prod(shape) for shape in shapes])
        weights = {name: piece.view(shape) for name, piece, shape in zip(names, pieces, shapes)}
        phi: Theta = {"norm": theta["norm"], "backbone": {}, "head": {}}
        for name, p in weights.items():
            if name != "log_precision":
                component, _, rest = name.partition(".")
                phi[component][rest] = p
        found = predict(backbone_name, phi, x)
        if y.is_floating_point():
            of_each: Tensor = Normal(found, (-0.5 * weights["log_precision"]).exp()).log_prob(y)
        else:
            of_each = Categorical(logits=found).log_prob(y)
        return of_each.sum()

    def step(vectors: list[Tensor], x: Tensor, y: Tensor) -> list[Tensor]:
        pairs = [((vectors[i] - vectors[j]).detach() ** 2).sum() for i in range(particles) for j in range(i)]
        bandwidth = sorted(pairs, key=float)[(len(pairs) - 1) // 2] / math.log(particles)
        moved = []
        for target in vectors:
            direction = torch.zeros_like(target)
            for source in vectors:
                copy = source + 0  # the source alone is differentiated, not the target where they are the same
                kernel = torch.exp(-((copy - target) ** 2).sum() / bandwidth)
                (of_kernel,) = torch.autograd.grad(kernel, copy, create_graph=True)
                (of_density,) = torch.autograd.grad(log_likelihood(copy, x, y), copy, create_graph=True)
                direction = direction + kernel * of_density + of_kernel
            moved.append(target + inner_lr * direction / particles)
        return moved

    for _ in range(inner_steps):
        vectors = step(vectors, support.x, support.y)
    leaders = vectors
    for _ in range(leader_steps):
        leaders = step(leaders, torch.cat([support.x, query.x]), torch.cat([support.y, query.y]))
    return sum((((a - b.detach()) ** 2).sum() / 2 for a, b in zip(vectors, leaders)), torch.zeros(()))
