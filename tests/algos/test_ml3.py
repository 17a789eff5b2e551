"""ML^3: what its loss learns, where its polynomial starts, and the learners it is learned on."""

from pathlib import Path

import pytest
import torch

from metarun.cli.compose import compose
from metarun.config.load import load_settings, resolve
from metarun.config.registry import traits_of
from metarun.config.traits import Kind
from metarun.core.batch import unstack
from metarun.core.types import Theta
from metarun.engine.build import Experiment
from metarun.engine.gradient import meta_gradient
from metarun.engine.loop import descend, set_clock
from tests.algos.test_carried import SETTINGS
from tests.support.tiny import algo_and_theta, episodes, leaves, plain_losses

FORMS = ("mlp", "cubic", "scaled")


@pytest.mark.parametrize("kind", ["classification", "regression"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_equals_plain_autograd(form: str, kind: Kind) -> None:
    algo, theta = algo_and_theta("ml3", "mlp", kind=kind, form=form)
    tasks = episodes(2, kind)
    loss, _, gradient = meta_gradient(algo, theta, tasks, execution="vmap")
    plain = plain_losses("ml3", "mlp", theta, tasks, form=form)
    expected = torch.autograd.grad(plain.mean(), leaves(theta), materialize_grads=True)
    torch.testing.assert_close(loss, plain.mean().detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(leaves(gradient), list(expected), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["classification", "regression"])
@pytest.mark.parametrize("form", FORMS)
def test_each_number_of_the_loss_has_the_meta_gradient_of_finite_differences(form: str, kind: Kind) -> None:
    algo, theta = algo_and_theta("ml3", "mlp", kind=kind, form=form)
    task = unstack(episodes(1, kind))[0]
    found = torch.autograd.grad(algo.task_loss(theta, task)[0], list(theta["loss"].values()))
    step = 1e-6
    for (name, p), gradient in zip(theta["loss"].items(), found):
        for i in range(p.numel()):
            ends = []
            for sign in (1, -1):
                moved = p.detach().clone()
                moved.view(-1)[i] += sign * step
                ends.append(algo.task_loss({**theta, "loss": {**theta["loss"], name: moved}}, task)[0].item())
            difference = (ends[0] - ends[1]) / (2 * step)
            assert gradient.reshape(-1)[i].item() == pytest.approx(difference, rel=1e-4, abs=1e-8)
    idle = {"p"} if (form, kind) == ("cubic", "classification") else set()  # probabilities sum to 1
    assert {name for name, g in zip(theta["loss"], found) if g.abs().max() < 1e-6} == idle


def test_in_regression_the_polynomial_starts_as_the_squared_error_and_so_does_the_scaled_form() -> None:
    """Its steps are MAML's from the same weights."""
    task = unstack(episodes(1, "regression"))[0]
    for form in ("cubic", "scaled"):
        algo, theta = algo_and_theta("ml3", "mlp", kind="regression", form=form)
        maml, _ = algo_and_theta("maml", "mlp", kind="regression", inner_lr=algo.inner_lr, inner_steps=2)
        theta["loss"] = {name: p.double() for name, p in algo.init()["loss"].items()}
        torch.testing.assert_close(leaves(algo.adapt(theta, task.support)), leaves(maml.adapt(theta, task.support)))


def test_in_classification_it_starts_as_the_cross_entropy_to_second_order_about_one_half() -> None:
    """-log p about 1/2 has the slope -2 and the curvature 4; the other classes have no part in it."""
    algo, _ = algo_and_theta("ml3", "mlp", form="cubic")
    w = {name: p.double() for name, p in algo.init()["loss"].items()}
    p = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    for y, expected in [(1.0, (-2.0, 4.0)), (0.0, (0.0, 0.0))]:
        (slope,) = torch.autograd.grad(algo.pointwise(w, p, torch.tensor(y).double()), p, create_graph=True)
        (curvature,) = torch.autograd.grad(slope, p)
        assert (slope.item(), curvature.item()) == expected


def test_a_learner_is_as_new_as_pytorchs_own() -> None:
    """Uniform within 1/sqrt(fan-in): 3 x 3 inputs of the first convolution, 4 x 3 x 3 of others, 4 of the head."""
    algo, _ = algo_and_theta("ml3", "conv4")
    for name, fan_in in {"convs.0.weight": 9, "convs.3.weight": 36}.items():
        bound = fan_in**-0.5
        drawn = torch.cat(
            [algo.draw_learner(torch.tensor(float(step)))["backbone"][name].flatten() for step in range(40)]
        )
        assert bound * 0.97 < drawn.max() <= bound
        assert -bound <= drawn.min() < -bound * 0.97
        assert abs(drawn.mean()) < 4 * bound / (3 * len(drawn)) ** 0.5
        assert drawn.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
    bias = algo.draw_learner(torch.tensor(7.0))["head"]["bias"]
    assert 0 < bias.abs().max() <= 1 / 2
    assert len(bias.unique()) == len(bias)


def test_each_step_hands_on_a_new_learner_and_the_loss_alone_is_descended() -> None:
    algo, theta = algo_and_theta("ml3", "mlp")
    theta["norm"] = {name: torch.full_like(p, 1.5, requires_grad=True) for name, p in theta["norm"].items()}
    optimizer = torch.optim.SGD(list(theta["loss"].values()), lr=0.1)
    seen = []
    salt = theta["salt"]["learner"].detach().clone()
    for step in range(3):
        loss = [p.clone() for p in theta["loss"].values()]
        set_clock(theta, step)
        descend(
            theta,
            meta_gradient(algo, theta, episodes(3), execution="vmap")[2],
            optimizer,
            SETTINGS,
            traits_of(algo).carried,
        )
        assert theta["salt"]["learner"] == salt
        expected = algo.draw_learner(salt + step + 1)
        for component in ("backbone", "head"):
            torch.testing.assert_close({n: p.detach() for n, p in theta[component].items()}, expected[component])
        assert all((p == 1.5).all() for p in theta["norm"].values())
        assert not any(torch.equal(before, p) for before, p in zip(loss, theta["loss"].values()))
        seen.append(theta["backbone"]["layers.0.weight"].detach().clone())
    correlation = torch.corrcoef(torch.stack([w.flatten() for w in seen]))
    assert (correlation - torch.eye(3)).abs().max() < 4 / seen[0].numel() ** 0.5


def test_learners_and_loss_are_drawn_from_the_seed(place: Path) -> None:
    def start(seed: int) -> Theta:
        settings = load_settings(resolve(compose(["algo=ml3", "dataset=sinusoid", f"seed={seed}", "device=cpu"])))
        return Experiment.build(settings).draw_theta()

    torch.testing.assert_close(start(0), start(0), rtol=0, atol=0)
    for component, name in (("loss", "0.weight"), ("backbone", "layers.0.weight"), ("salt", "learner")):
        assert not torch.equal(start(0)[component][name], start(1)[component][name])
