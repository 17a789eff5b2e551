"""ALFA: its update by hand, what it is without generated numbers, and what it does beyond the trained steps."""

import torch

from metarun.config.registry import build
from metarun.core.batch import unstack
from metarun.core.types import Examples, TaskSpec
from metarun.engine.build import build_few_shot
from tests.reference.alfa import SETTINGS
from tests.support.tiny import algo_and_theta, episodes, leaves


def test_one_step_by_hand() -> None:
    """f(x) = w x + b = 1 at x = 1, y = 0: the squared error's slope is 2 in both, and L = 2 layers have the state
    (w, b, 2, 2) = (3, -2, 2, 2). A generator of first row sums and second row signs gives alpha and beta."""
    spec = TaskSpec("regression", (1,), 1)
    network = build("backbone", {"name": "mlp", "hidden": [], "batch_norm": False}, input_shape=(1,)).double()
    algo = build_few_shot({"name": "alfa", **SETTINGS, "inner_steps": 1}, network, spec)
    theta = {c: {n: p.double() for n, p in params.items()} for c, params in algo.init().items()}
    theta["head"] = {"weight": torch.tensor([[3.0]]).double(), "bias": torch.tensor([-2.0]).double()}
    theta["lr"] = {"head.weight": torch.tensor([0.1]).double(), "head.bias": torch.tensor([0.2]).double()}
    theta["decay"] = {"head.weight": torch.tensor([0.01]).double(), "head.bias": torch.tensor([0.02]).double()}
    theta["generator"] = {
        "0.weight": torch.eye(4).double(),
        "0.bias": torch.zeros(4).double(),  # hidden: (3, 0, 2, 2)
        "1.weight": torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 2, 0], [0, 0, 0, -1]]).double(),
        "1.bias": torch.tensor([0, 0.5, 0, 0]).double(),  # numbers: alpha 3, 0.5; beta 4, -2
    }
    phi = algo.adapt(theta, Examples(torch.ones(1, 1).double(), torch.zeros(1, 1).double()))
    torch.testing.assert_close(phi["head"]["weight"].item(), (1 - 4 * 0.01) * 3 - 3 * 0.1 * 2)
    torch.testing.assert_close(phi["head"]["bias"].item(), (1 + 2 * 0.02) * -2 - 0.5 * 0.2 * 2)


def test_with_all_numbers_one_it_is_maml_with_weight_decay() -> None:
    algo, theta = algo_and_theta("alfa", "mlp", inner_steps=1)
    maml, _ = algo_and_theta("maml", "mlp", inner_lr=0.3, inner_steps=1)
    theta["generator"] = {name: torch.zeros_like(p) for name, p in theta["generator"].items()}
    theta["generator"]["1.bias"] += 1
    theta["lr"] = {name: torch.full_like(rate, 0.3) for name, rate in theta["lr"].items()}
    task = unstack(episodes(1))[0]
    for decay in (0.0, 0.25):
        theta["decay"] = {name: torch.full_like(rate, decay) for name, rate in theta["decay"].items()}
        start = leaves({c: theta[c] for c in ("backbone", "head")})
        expected = [p - decay * p0 for p, p0 in zip(leaves(maml.adapt(theta, task.support)), start)]
        torch.testing.assert_close(leaves(algo.adapt(theta, task.support)), expected)


def test_steps_beyond_the_trained_ones_have_the_factors_of_the_last() -> None:
    _, theta = algo_and_theta("alfa", "mlp", inner_steps=2)
    longer, _ = algo_and_theta("alfa", "mlp", inner_steps=4)
    padded = {c: {n: p[[0, 1, 1, 1]] for n, p in theta[c].items()} for c in ("lr", "decay")}
    task = unstack(episodes(1))[0]
    expected = longer.task_metrics({**theta, **padded}, task)
    assert expected["accuracy_by_step"].shape == (5,)
    torch.testing.assert_close(longer.task_metrics(theta, task), expected, rtol=0, atol=0)
