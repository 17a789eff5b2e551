"""`metarun explain`: the curves are the functions that were learned, and the files hold the curves."""

import csv
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from metarun.config.registry import traits_of
from metarun.config.traits import Kind
from metarun.core.batch import unstack
from metarun.core.inner import flatten
from metarun.core.learned import Chart, average, chart_by_rank, chart_by_step
from metarun.core.types import Theta
from tests.conftest import TINY, Command
from tests.support.tiny import WAYS, algo_and_theta, episodes

FORMULAS = {  # the learned losses that are written as formulas, of TINY runs
    "ml3": ["M(p, y)"],
    "metal": [f"{part} loss {j}" for part in ("support", "query") for j in range(1, 3)],
}


@pytest.fixture(autouse=True)
def doubles() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def detach(theta: Theta) -> Theta:
    return {c: {n: p.detach() for n, p in params.items()} for c, params in theta.items()}


def charts_of(algo: Any, theta: Theta, kind: Kind = "classification") -> dict[str, Chart]:
    charts: dict[str, Chart] = algo.explain(detach(theta), unstack(episodes(1, kind))[0])
    return charts


@pytest.mark.parametrize("kind", ["regression", "classification"])
def test_a_scaled_loss_is_the_usual_one_times_its_number(kind: Kind) -> None:
    algo, theta = algo_and_theta("ml3", "mlp", kind, form="scaled")
    theta["loss"]["scale"] = torch.tensor(3.0)
    charts = charts_of(algo, theta, kind)
    for chart in charts.values():
        ours = [line for name, line in chart.lines.items() if name.startswith("learned")]
        (usual,) = (line for name, line in chart.lines.items() if not name.startswith("learned"))
        assert len(ours) == (3 if kind == "regression" else 1)
        torch.testing.assert_close(ours, [3 * usual] * len(ours))
    x = charts["loss"].x
    if kind == "regression":
        torch.testing.assert_close(charts["loss"].lines["mse"], x**2)
        torch.testing.assert_close(charts["slope"].lines["mse"], 2 * x)
    else:  # of N logits one is larger by x
        expected = torch.log1p((WAYS - 1) * (-x).exp())
        torch.testing.assert_close(charts["loss"].lines["cross-entropy"], expected)


def test_the_cubic_begins_as_the_squared_error_but_for_a_constant() -> None:
    algo, _ = algo_and_theta("ml3", "mlp", "regression", form="cubic")
    slope = charts_of(algo, algo.init(), "regression")["slope"]
    for target in ("-2", "0", "2"):
        torch.testing.assert_close(slope.lines[f"learned, y = {target}"], slope.lines["mse"])


@pytest.mark.parametrize(("name", "changes"), [("ml3", {"form": "mlp"}), ("ml3", {"form": "cubic"}), ("metal", {})])
def test_slopes_are_those_of_the_losses(name: str, changes: dict[str, Any]) -> None:
    algo, theta = algo_and_theta(name, "mlp", **changes)
    loss, slope = charts_of(algo, theta).values()
    assert loss.lines.keys() == slope.lines.keys()
    for line, values in loss.lines.items():
        between = values.diff() / loss.x.diff()
        middle = (slope.lines[line][1:] + slope.lines[line][:-1]) / 2
        assert (between - middle).abs().quantile(0.9) < 1e-2 * (1 + between.abs().max())  # but where a ReLU bends


def test_metals_curve_has_cross_entropy_in_it() -> None:
    algo, theta = algo_and_theta("metal", "mlp")
    theta = detach(theta)
    theta["support_loss"] = {name: torch.zeros_like(p) for name, p in theta["support_loss"].items()}
    theta["support_adapter"] |= {name: torch.zeros_like(theta["support_adapter"][name]) for name in ("scale", "shift")}
    lines = dict(charts_of(algo, theta)["loss"].lines)
    usual = lines.pop("cross-entropy")
    for line in lines.values():
        torch.testing.assert_close(line, usual)


def test_rates_by_step_and_by_rank() -> None:
    rates = {"backbone.a": torch.tensor([0.1, 0.3]), "head.b": torch.tensor([0.2, -0.2])}
    chart = chart_by_step(rates)
    assert (chart.x.tolist(), list(chart.lines)) == ([1, 2], ["backbone.a", "head.b"])
    sorted_rates = chart_by_rank({"w": torch.tensor([[3.0, 1.0], [2.0, 5.0]])}).lines["w"]
    assert sorted_rates[[0, 60, -1]].tolist() == [1, 2.5, 5]


def test_alfas_rates_and_decays_are_those_of_its_steps() -> None:
    algo, theta = algo_and_theta("alfa", "mlp")
    theta, (task,) = detach(theta), unstack(episodes(1))
    charts = algo.explain(theta, task)
    states = list(algo.trajectory(theta, task.support))
    for j, (before, after) in enumerate(pairwise(states)):
        gradient = flatten(algo.gradient(theta, before, task.support))
        for name, p in flatten(before).items():
            rate, decay = charts["rates"].lines[name][j], charts["decays"].lines[name][j]
            torch.testing.assert_close(flatten(after)[name], (1 - decay) * p - rate * gradient[name])


def test_gates_that_see_nothing_are_their_biases() -> None:
    algo, theta = algo_and_theta("metalstm", "mlp")
    for gate, bias in (("forget", 4.0), ("enter", -3.0)):
        theta[gate] = {"weight": torch.zeros_like(theta[gate]["weight"]), "bias": torch.tensor(bias)}
    charts = charts_of(algo, theta)
    for name, bias in (("kept", 4.0), ("rates", -3.0)):
        for line in charts[name].lines.values():
            torch.testing.assert_close(line, torch.full((algo.inner_steps,), bias).sigmoid())


def test_a_mean_is_over_tasks() -> None:
    charts = [Chart("error", torch.arange(2.0), {"a": torch.tensor(line)}) for line in ([1.0, 2.0], [3.0, 6.0])]
    assert average(charts).lines["a"].tolist() == [2, 4]


@pytest.mark.parametrize(
    ("algo", "names"),
    [
        ("metasgd", ["rates"]),
        ("mamlpp", ["rates"]),
        ("alfa", ["decays", "rates"]),
        ("metalstm", ["kept", "rates"]),
        ("metal", ["loss", "slope"]),
        ("ml3", ["loss", "slope"]),
    ],
)
def test_the_command_writes_drawings_and_numbers(metarun: Command, algo: str, names: list[str]) -> None:
    torch.set_default_dtype(torch.float32)
    assert metarun(*TINY, f"algo={algo}", "hydra.run.dir=run").code == 0
    answer = metarun("explain", "run")
    assert answer.code == 0, answer.err
    written = {file.name for file in Path("run/explained").iterdir()}
    formulas = {"formula.txt"} if algo in FORMULAS else set()
    assert written == {f"{name}.{kind}" for name in names for kind in ("csv", "png")} | formulas
    if formulas:
        lines = (Path("run/explained") / "formula.txt").read_text().splitlines()
        assert [line.partition(" =")[0] for line in lines[:-1:2]] == FORMULAS[algo]
        assert {line.partition(" explains")[0] for line in lines[1:-1:2]} == {"its slope"}
        assert lines[-1].startswith("accuracy of validation tasks: ")
    with (Path("run/explained") / f"{names[-1]}.csv").open() as file:
        header, *rows = csv.reader(file)
    assert len(header) > 1
    assert all(len(row) == len(header) for row in rows)
    assert (Path("run/explained") / f"{names[-1]}.png").read_bytes().startswith(b"\x89PNG")


def test_a_method_that_learns_weights_alone_is_told(metarun: Command) -> None:
    torch.set_default_dtype(torch.float32)
    assert metarun(*TINY, "hydra.run.dir=run").code == 0
    answer = metarun("explain", "run")
    assert answer.code == 2
    assert answer.err == "metarun: algo=maml learns no loss and no rate: there is nothing to draw\n"


@pytest.mark.parametrize("kind", ["regression", "classification"])
def test_a_formula_has_the_slopes_that_it_says_it_explains(kind: Kind) -> None:
    """By plain autograd through both losses, on the formula's grid: at p = y = 0 networks without biases have kinks,
    which finite differences would straddle.
    """
    algo, theta = algo_and_theta("ml3", "mlp", kind, form="mlp", hidden=[6])
    cubic, plugged, formulas = algo.simplify(detach(theta), [])
    (formula,) = formulas.values()
    low, high = (0, 1) if kind == "classification" else (-5, 5)
    y = torch.tensor([0.0, 1.0]) if kind == "classification" else torch.linspace(low, high, 101)[::5]
    p = torch.linspace(low, high, 101)[:, None].expand(-1, len(y)).clone().requires_grad_()
    learned, simple = (
        torch.autograd.grad(method.pointwise(w["loss"], p, y.expand_as(p)).sum(), p)[0]
        for method, w in ((algo, theta), (cubic, plugged))
    )
    left = (simple - learned).square().sum() / learned.square().sum()
    assert formula.explained == pytest.approx(1 - left.item(), abs=1e-9)
    assert {name for name, p in plugged["loss"].items() if p != 0} == set(formula.coefficients)


def test_metals_formulas_have_the_slopes_that_they_say_they_explain() -> None:
    """By plain autograd through both losses, at the logits of every inner step of two tasks."""
    algo, theta = algo_and_theta("metal", "mlp", transductive=False)
    theta, tasks = detach(theta), unstack(episodes(2))
    written, plugged, formulas = algo.simplify(theta, tasks)
    assert list(formulas) == ["support loss 1", "support loss 2"]
    for j, formula in enumerate(formulas.values()):
        left = whole = 0.0
        for support, _ in tasks:
            phi = list(algo.trajectory(theta, support, None))[j]
            logits = algo.predict(theta, phi, support.x).requires_grad_()
            entropy = torch.nn.functional.cross_entropy(logits, support.y)
            learned, simple = (
                torch.autograd.grad(
                    method.support_loss(w, phi, logits, support.y, j) - entropy, logits, retain_graph=True
                )[0]
                for method, w in ((algo, theta), (written, plugged))
            )
            left, whole = left + float((simple - learned).square().sum()), whole + float(learned.square().sum())
        assert formula.explained == pytest.approx(1 - left / whole, abs=1e-9)


def test_a_formula_in_place_of_metals_losses_is_what_it_adapts_by() -> None:
    """-ylogp is cross-entropy once more: MAML with twice the rate. What the class knows of its queries stays."""
    algo, theta = algo_and_theta("metal", "mlp")
    (task,) = unstack(episodes(1))
    written, plugged, _ = algo.simplify(detach(theta), [task])
    for part, chosen in (("support_formula", "ylogp"), ("query_formula", None)):
        plugged[part] = {name: torch.full_like(p, -float(name == chosen)) for name, p in plugged[part].items()}
    maml, _ = algo_and_theta("maml", "mlp", inner_lr=2 * algo.inner_lr, inner_steps=algo.inner_steps)
    alone = replace(written, transductive=False)
    assert_equal = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-12)
    assert_equal(alone.task_loss(plugged, task)[0], maml.task_loss(plugged, task)[0])
    plugged["query_formula"]["z2"] += 0.1
    assert traits_of(written).sees_queries
    moved = written.adapt(plugged, task.support, task.query.x)["head"]["weight"]
    assert (moved - alone.adapt(plugged, task.support)["head"]["weight"]).abs().max() > 1e-3
