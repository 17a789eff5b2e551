"""Baseline and Baseline++: the classifier that is trained, and the layer that is fitted at meta-test."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from metarun.cli.compose import compose
from metarun.config.load import load_settings, resolve
from metarun.core.batch import unstack
from metarun.core.types import Episode, Params, Theta
from metarun.engine import checkpoint
from metarun.engine.build import Experiment
from metarun.engine.gradient import meta_gradient
from tests.conftest import TINY, Command
from tests.reference.baseline import SETTINGS, logits
from tests.reference.plain import features, loss
from tests.support.tiny import WAYS, algo_and_theta, episodes, leaves, plain_losses

SCALES = [None, 10.0]  # Baseline, Baseline++


def by_hand(algo: Any, theta: Theta, task: Episode, scale: float | None, start: Params) -> Params:
    """The new layer by torch.optim.SGD on the method's own batches."""
    z = features("conv4", theta, task.support.x).detach()
    layer = {name: p.clone().requires_grad_() for name, p in start.items()}
    settings: dict[str, Any] = {name: SETTINGS[name] for name in ("momentum", "dampening", "weight_decay")}
    settings["lr"] = SETTINGS["head_lr"]
    optimizer = torch.optim.SGD(layer.values(), **settings)
    for batch in algo.batches(z):
        optimizer.zero_grad()
        loss(logits(layer, z[batch], scale), task.support.y[batch]).backward()
        optimizer.step()
    return {name: p.detach() for name, p in layer.items()}


@pytest.mark.parametrize("passes", [0, 1, 3])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("start", ["random", "class_means"])
def test_the_fitted_layer_is_that_of_torchs_sgd(start: str, scale: float | None, passes: int) -> None:
    algo, theta = algo_and_theta("baseline", "conv4", cosine_scale=scale, head_passes=passes, head_start=start)
    for task in unstack(episodes(2)):
        z = features("conv4", theta, task.support.x).detach()
        expected = by_hand(algo, theta, task, scale, algo.start(z, task.support.y))
        phi = algo.adapt(theta, task.support)
        torch.testing.assert_close(phi, expected, rtol=1e-9, atol=1e-12)
        answer = logits(expected, features("conv4", theta, task.query.x), scale)
        torch.testing.assert_close(algo.predict(theta, phi, task.query.x), answer, rtol=1e-9, atol=1e-12)


def test_each_pass_is_a_new_order_of_the_whole_support_in_batches() -> None:
    algo, _ = algo_and_theta("baseline", "mlp", head_passes=40, head_batch=4)
    batches = list(algo.batches(torch.zeros(10, 3)))
    assert [len(batch) for batch in batches] == 40 * [4, 4, 2]
    passes = [torch.cat(batches[3 * i : 3 * i + 3]).tolist() for i in range(40)]
    assert all(sorted(order) == list(range(10)) for order in passes)
    assert len({tuple(order) for order in passes}) == 40
    first = torch.tensor([order[0] for order in passes]).bincount(minlength=10)
    assert first.max() <= 12  # 4 of each are expected; 13 or more of one have a probability below 1 in 1,000


@pytest.mark.parametrize("scale", SCALES)
def test_the_new_layer_starts_from_class_means_or_as_torchs_linear_layer_does(scale: float | None) -> None:
    z, y = torch.rand(4 * WAYS, 400), torch.arange(WAYS).repeat(4)
    algo, _ = algo_and_theta("baseline", "mlp", cosine_scale=scale, head_start="class_means")
    means = torch.stack([z[y == k].mean(0) for k in range(WAYS)])
    torch.testing.assert_close(algo.start(z, y)["weight"], means)
    algo, _ = algo_and_theta("baseline", "mlp", cosine_scale=scale, head_start="random")
    drawn, torchs = algo.start(z, y), torch.nn.Linear(400, WAYS)
    assert drawn.keys() == ({"weight"} if scale else {"weight", "bias"})
    assert drawn["weight"].shape == torchs.weight.shape
    torch.testing.assert_close(drawn["weight"].std(), torchs.weight.std(), rtol=0.1, atol=0)
    assert torchs.weight.abs().max() <= 1 / 20
    assert drawn["weight"].abs().max() <= 1 / 20


def test_the_cosine_layer_by_hand() -> None:
    """z = (3, 4); w = (1, 0), (0, -2), (6, 8): cosines 3/5, -4/5, 1, whatever the lengths."""
    algo, _ = algo_and_theta("baseline", "mlp", cosine_scale=2.0)
    z, w = torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0], [0.0, -2.0], [6.0, 8.0]])
    torch.testing.assert_close(algo.logits({"weight": w}, z), torch.tensor([[1.2, -1.6, 2.0]]))
    torch.testing.assert_close(algo.logits({"weight": 7 * w}, 5 * z), torch.tensor([[1.2, -1.6, 2.0]]))


def test_gradient_of_the_cosine_classifier_equals_plain_autograd() -> None:
    algo, theta = algo_and_theta("baseline", "resnet12", cosine_scale=10.0)  # no zero features
    tasks = episodes(3)
    meta_loss, _, gradient = meta_gradient(algo, theta, tasks, execution="vmap")
    plain = plain_losses("baseline", "resnet12", theta, tasks, cosine_scale=10.0)
    expected = torch.autograd.grad(plain.mean(), leaves(theta))
    torch.testing.assert_close(meta_loss, plain.detach().mean(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(leaves(gradient), list(expected), rtol=1e-9, atol=1e-12)


@pytest.mark.integration
@pytest.mark.parametrize("algo", ["baseline", "baselinepp"])
def test_it_trains_on_all_classes_and_is_tested_on_tasks_of_any_size(metarun: Command, place: Path, algo: str) -> None:
    answer = metarun(*TINY, f"algo={algo}", "algo.head_passes=1", "hydra.run.dir=run")
    assert answer.code == 0, answer.err
    theta = checkpoint.load(place / "run/checkpoints/best.pt")[0]["theta"]
    assert theta["classifier"]["weight"].shape == (20, 4)
    assert metarun("evaluate", "run", "ways=3").code == 0
    rows = json.loads((place / "run/tests/ways=3/result.json").read_text())["test"]
    assert (list(rows), rows["test"]["ways"], rows["test"]["transductive"]) == (
        ["test", "untrained", "pixels"],
        3,
        False,
    )


def test_the_classifier_is_drawn_from_the_seed(place: Path) -> None:
    def drawn(seed: int) -> torch.Tensor:
        torch.randn(seed + 1)  # whatever was drawn before
        settings = load_settings(resolve(compose([*TINY, "algo=baseline", f"seed={seed}"])))
        return Experiment.build(settings).draw_theta()["classifier"]["weight"]

    assert torch.equal(drawn(3), drawn(3))
    assert not torch.equal(drawn(3), drawn(4))
