"""A training loop of one's own around metarun's meta-gradient: python examples/own_loop.py [steps]."""

import sys

import torch

from metarun.algos.maml import MAML
from metarun.backbones.conv4 import Conv4Strided
from metarun.core.batch import map_tasks
from metarun.core.inner import draw_theta
from metarun.core.seeding import generator_for
from metarun.core.types import TaskShape
from metarun.datasets.glyphs import Glyphs
from metarun.engine.gradient import meta_gradient


def main(steps: int = 200, seed: int = 0) -> float:
    """Train MAML on 5-way 1-shot tasks. Returns the accuracy on 200 test tasks of classes that were not trained on."""
    data = Glyphs(300, 50, 100, 20, image_size=28, jitter=0.1, warp=0.13, generator_seed=0, device=torch.device("cpu"))
    train, test = (data.tasks(split, TaskShape(ways=5, shots=1, queries=5)) for split in ("train", "test"))

    backbone = Conv4Strided(filters=32, input_shape=train.spec.input_shape)
    algo = MAML(0.4, 1, False, "batch", backbone, backbone.head(5), train.spec)  # alpha, inner steps, first order
    theta = draw_theta(algo, seed)  # component -> name -> tensor
    weights = [p.requires_grad_() for params in theta.values() for p in params.values()]
    optimizer = torch.optim.Adam(weights, lr=1e-3)

    for step in range(steps):
        tasks = train.sample(8, generator_for(seed, "train", step))  # support and query, [T, n, ...]
        loss, metrics, gradient = meta_gradient(algo, theta, tasks, execution="vmap")
        for p, g in zip(weights, (g for params in gradient.values() for g in params.values())):
            p.grad = g
        optimizer.step()
        if step % 20 == 0:
            print(f"step {step}: loss {loss:.3f}, accuracy {100 * metrics['accuracy']:.1f} %")

    with torch.no_grad():
        scores = map_tasks(lambda task: algo.task_metrics(theta, task), test.sample(200, generator_for("test")), "loop")
    return float(scores["accuracy"].mean())


if __name__ == "__main__":
    print(f"test accuracy {100 * main(*map(int, sys.argv[1:])):.1f} %")
