"""MeTAL: what it is without its learned losses, what it sees of the queries, and that its results say so."""

from pathlib import Path

import pytest
import torch

from metarun.cli.compose import compose
from metarun.config.load import load_settings, resolve
from metarun.core.batch import unstack
from metarun.core.objectives import adapt_to, predict_queries
from metarun.core.types import Episode, Theta
from metarun.engine.build import Experiment
from metarun.engine.ensemble import Ensemble
from metarun.engine.evaluate import is_transductive
from metarun.engine.gradient import meta_gradient
from tests.support.tiny import algo_and_theta, episodes, leaves, plain_losses


def without_losses(theta: Theta) -> Theta:
    """The learned losses are constant."""
    flat = {c: {n: torch.zeros_like(p) for n, p in theta[c].items()} for c in theta if c.endswith("_loss")}
    still = {c: {**theta[c], "shift": torch.zeros_like(theta[c]["shift"])} for c in theta if c.endswith("_adapter")}
    return theta | flat | still


def test_without_learned_losses_it_is_maml() -> None:
    algo, theta = algo_and_theta("metal", "mlp", transductive=False)
    maml, _ = algo_and_theta("maml", "mlp", inner_lr=0.3, inner_steps=2)
    task = unstack(episodes(1))[0]
    expected = maml.task_loss(theta, task)[0]
    torch.testing.assert_close(algo.task_loss(without_losses(theta), task)[0], expected, rtol=1e-12, atol=0)
    assert (algo.task_loss(theta, task)[0] - expected).abs() > 1e-3


def test_the_inductive_variant_equals_plain_autograd() -> None:
    algo, theta = algo_and_theta("metal", "conv4_strided", transductive=False)
    assert {name for name in theta if "query" in name} == set()
    tasks = episodes(2)
    _, _, gradient = meta_gradient(algo, theta, tasks, execution="vmap")
    plain_loss = plain_losses("metal", "conv4_strided", theta, tasks, transductive=False).mean()
    expected = torch.autograd.grad(plain_loss, leaves(theta), materialize_grads=True)
    torch.testing.assert_close(leaves(gradient), list(expected), rtol=1e-9, atol=1e-12)


def test_losses_start_unmodulated_and_learn_by_every_part() -> None:
    """With a = b = 0 only these two and the losses themselves have a gradient; then the adapters have one too."""
    algo, theta = algo_and_theta("metal", "mlp")
    assert all((algo.init()[c][n] == 0).all() for c in theta if "adapter" in c for n in ("scale", "shift"))
    for at_start in (True, False):
        for component in ("support_adapter", "query_adapter"):
            for name in ("scale", "shift"):
                theta[component][name] = torch.full_like(theta[component][name], 0.0 if at_start else 0.2)
        theta = {c: {n: p.detach().requires_grad_() for n, p in params.items()} for c, params in theta.items()}
        _, _, gradient = meta_gradient(algo, theta, episodes(2), execution="vmap")
        for part in ("support", "query"):
            assert all(g.abs().max() > 0 for name, g in gradient[f"{part}_loss"].items() if "weight" in name)
            adapter = gradient[f"{part}_adapter"]
            assert min(adapter["scale"].abs().max(), adapter["shift"].abs().max()) > 0
            assert all((adapter[name].abs().max() == 0) == at_start for name in ("0.weight", "1.weight", "1.bias"))


@pytest.mark.parametrize("transductive", [True, False])
def test_other_queries_change_an_answer_only_where_that_is_declared(transductive: bool) -> None:
    """On a network without norm layers, so that nothing else mixes the queries."""
    algo, theta = algo_and_theta("metal", "koch", transductive=transductive)
    task, other = unstack(episodes(2))
    mixed = Episode(task.support, task.query._replace(x=torch.cat([task.query.x[:1], other.query.x[1:]])))
    found = [predict_queries(algo, theta, adapt_to(algo, theta, episode), episode)[0] for episode in (task, mixed)]
    assert torch.equal(*found) != transductive


def test_an_ensemble_adapts_to_the_queries_as_its_members_do() -> None:
    algo, theta = algo_and_theta("metal", "koch")
    task = unstack(episodes(1))[0]
    alone = algo.predict(theta, algo.adapt(theta, task.support, task.query.x), task.query.x).softmax(-1)
    torch.testing.assert_close(Ensemble([(algo, theta)] * 2, algo.spec).probabilities(task), alone)


@pytest.mark.parametrize("backbone", [["backbone=conv4_strided"], ["backbone=mlp", "backbone.hidden=[8]"]])
def test_results_say_what_is_transductive(place: Path, backbone: str) -> None:
    experiment = Experiment.build(load_settings(resolve(compose(["algo=metal", *backbone, "device=cpu"]))))
    rows = experiment.plan_rows()
    assert {name: is_transductive(row, experiment.has_norm) for name, row in rows.items()} == {
        "test": True,
        "test_inductive": False,
    }
    assert (rows["test"].algo["transductive"], rows["test"].algo["norm"]) == (True, "batch")
    assert (rows["test_inductive"].algo["transductive"], rows["test_inductive"].algo["norm"]) == (False, "per_query")
