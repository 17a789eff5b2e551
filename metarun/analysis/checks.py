"""Generic checks of a method or a network: what each must fulfil to be trained and tested here.

A check raises AssertionError with one line that says what is wrong. Methods and networks are checked in float64 on
small random tasks. `metarun.testing` and the command `metarun check` run the checks.
"""

import functools
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from metarun.analysis.device_checks import check_rows, check_step
from metarun.analysis.problems import CLOSE, NEAR, Check, Problem, compare, leaves, require, zip_theta
from metarun.config.errors import Failed
from metarun.config.registry import declaration, traits_of
from metarun.config.schema import Settings
from metarun.config.traits import Kind
from metarun.core.batch import map_tasks, unstack
from metarun.core.inner import draw_networks, draw_theta
from metarun.core.norm import collect_statistics, norm_names, use_statistics
from metarun.core.objectives import adapt_to, measure, predict_queries
from metarun.core.seeding import generator_for
from metarun.core.types import (
    Episode,
    Examples,
    Theta,
)
from metarun.engine import checkpoint
from metarun.engine.build import Experiment
from metarun.engine.distributed import ALONE
from metarun.engine.evaluate import is_transductive, make_inductive, plan_rows
from metarun.engine.gradient import meta_gradient
from metarun.runs.folder import RunFolder
from metarun.runs.session import train_run

ON_GPU = "{} would run on a GPU without waiting for it or copying to it"
DISTANCES = (1e-6, 1e-8)  # of the points of finite differences from theta: the smaller if a ReLU changes sides


def list_algorithm_checks(settings: Settings) -> list[Check]:
    """The checks of the method that the settings choose, on their backbone and dataset."""
    traits = declaration("algo", settings.algo["name"]).traits
    few_shot = [kind for kind in traits.kinds if kind != "control"]
    exact = {**settings.algo, "first_order": False} if "first_order" in settings.algo else settings.algo

    def each(check: Callable[[Problem], None], algo: Mapping[str, Any] | None = None) -> Callable[[], None]:
        def run() -> None:
            for kind in traits.kinds:
                check(Problem.of(settings, kind, algo))

        return run

    def each_tested(check: Callable[[Problem, Theta], None], per_query: bool) -> Callable[[], None]:
        def run() -> None:
            for kind in few_shot:
                check(*build_tested(settings, kind, per_query))

        return run

    def check_inits() -> None:
        for kind in traits.kinds:
            check_init(functools.partial(Problem.of, settings, kind))

    def check_steps() -> None:
        for kind in traits.kinds:
            check_step(functools.partial(Problem.of, settings, kind), settings.trainer)

    def check_tests() -> None:
        for kind in traits.kinds:
            check_rows(settings, kind)

    training = functools.cache(lambda: Trained(settings))
    checks = [
        Check("all weights are drawn in init(), from the seed alone", check_inits),
        Check("the meta-gradient of a batch equals that of a plain loop over tasks", each(check_batching)),
        Check("vmap, a loop and chunks of tasks give the same meta-gradient", each(check_chunks)),
    ]
    if traits.exact:
        checks.append(Check("the meta-gradient is the slope of the loss", each(check_slope, exact)))
    if few_shot:
        checks += [
            Check(
                "a query is predicted alone as in company, unless that is declared", each_tested(check_company, False)
            ),
            Check(
                "the test's figure is that of predictions that see no query's label", each_tested(check_figure, True)
            ),
        ]
    return [
        *checks,
        Check(ON_GPU.format("a step"), check_steps),
        Check(ON_GPU.format("a test"), check_tests),
        Check("a training of a few steps stays finite", lambda: training().check_finite()),
        Check("a training that goes on from a checkpoint is bit-equal", lambda: training().check_resume()),
    ]


def list_backbone_checks(settings: Settings) -> list[Check]:
    """The checks of the network that the settings choose, trained by their method."""
    problem = functools.partial(Problem.of, settings, "classification")
    return [
        Check("features have the size that is declared", lambda: check_features(problem())),
        Check("weights are drawn anew from the seed alone", lambda: check_init(problem)),
        Check("an input has the same features each time, and alone as in company", lambda: check_state(problem())),
        Check("the meta-gradient of a batch equals that of a plain loop over tasks", lambda: check_batching(problem())),
        Check("vmap, a loop and chunks of tasks give the same meta-gradient", lambda: check_chunks(problem())),
        Check("the meta-gradient is the slope of the loss", lambda: check_slope(problem())),
        Check(ON_GPU.format("a step"), lambda: check_step(problem, settings.trainer)),
    ]


def check_init(problem: Callable[[], Problem]) -> None:
    """`problem` builds the method anew."""
    state = torch.get_rng_state()
    first = problem().algo
    one, two = draw_theta(first, 1), draw_theta(first, 2)
    require(torch.equal(torch.get_rng_state(), state), "init() or the constructor changes the global random generator")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        again = draw_theta(problem().algo, 2)
    for name, (a, b, c) in zip_theta(one, two, again):
        require(
            torch.equal(b, c), f"{name} does not follow from the seed alone: it is drawn, or kept, outside of init()"
        )
        drawn = len(a.unique()) > 2  # neither a constant nor an identity
        require(
            not drawn or not torch.equal(a, b), f"{name} is random and yet the same for two seeds: draw it in init()"
        )


def check_batching(problem: Problem) -> None:
    theta, tasks = problem.theta(), problem.tasks(3)
    losses = torch.stack([problem.algo.task_loss(theta, task)[0] for task in unstack(tasks)])
    require(losses.shape == (3,), f"task_loss returns {list(losses.shape[1:])}: it must be a scalar")
    plain = torch.autograd.grad(losses.mean(), leaves(theta), materialize_grads=True)
    loss, _, gradient = meta_gradient(problem.algo, theta, tasks, execution="vmap")
    compare("loss of a batch", [loss], [losses.mean()])
    compare("meta-gradient of a batch", leaves(gradient), list(plain))


def check_chunks(problem: Problem) -> None:
    theta, tasks = problem.theta(), problem.tasks(3)
    whole = leaves(meta_gradient(problem.algo, theta, tasks, execution="vmap")[2])
    compare("meta-gradient of a loop", leaves(meta_gradient(problem.algo, theta, tasks, execution="loop")[2]), whole)
    for size in (1, 2):
        found = meta_gradient(problem.algo, theta, tasks, execution="vmap", tasks_per_chunk=size)[2]
        compare(f"meta-gradient in chunks of {size}", leaves(found), whole)


def check_slope(problem: Problem) -> None:
    """Compare along the gradient and a random direction together: a wrong length shows as well as a wrong angle."""
    algo, tasks, theta = problem.algo, problem.tasks(2), problem.theta(late=True)
    gradient = meta_gradient(algo, theta, tasks, execution="vmap")[2]
    learned = {c: params for c, params in gradient.items() if c not in traits_of(algo).carried}
    noise = generator_for("direction")
    random = {
        c: {n: torch.randn(g.shape, generator=noise, dtype=g.dtype) for n, g in ps.items()} for c, ps in learned.items()
    }
    lengths = [torch.cat([g.flatten() for g in leaves(part)]).norm() for part in (learned, random)]
    require(float(lengths[0]) > 0, "the meta-gradient is zero: nothing is learned")
    direction = {
        c: {n: g / lengths[0] + random[c][n] / lengths[1] for n, g in params.items()} for c, params in learned.items()
    }

    def loss_at(distance: float) -> Tensor:
        moved = {
            c: {n: p.detach() + distance * direction[c][n] if c in direction else p.detach() for n, p in params.items()}
            for c, params in theta.items()
        }
        with torch.no_grad():
            loss: Tensor = map_tasks(lambda task: algo.task_loss(moved, task)[0], tasks, "loop").mean()
        return loss

    slope = torch.stack([(g * direction[c][n]).sum() for c, params in learned.items() for n, g in params.items()]).sum()
    rises = [(loss_at(distance) - loss_at(-distance)) / (2 * distance) for distance in DISTANCES]
    error, rise = min((float((slope - rise).abs() / lengths[0]), float(rise)) for rise in rises)
    require(
        error <= NEAR,
        f"the loss rises by {rise:.6g} along a direction and the meta-gradient says {float(slope):.6g}: "
        "something is left out of the graph (if that is meant, declare Traits(exact=False))",
    )


def build_tested(settings: Settings, kind: Kind, per_query: bool) -> tuple[Problem, Theta]:
    """Build the method as it is tested, with the statistics of norm layers where it uses them.

    It is its inductive form if the other is transductive, or if that is asked for.
    """
    trained = Problem.of(settings, kind)
    theta, row = trained.theta(), plan_rows(settings, bool(norm_names(trained.backbone)))["test"]
    inductive = per_query or is_transductive(row, bool(norm_names(trained.backbone)))
    problem = Problem.of(settings, kind, make_inductive(row.algo) if inductive else row.algo)
    if problem.few_shot.norm == "running" and norm_names(problem.backbone):
        tasks = unstack(trained.tasks(3))
        statistics = collect_statistics(
            trained.backbone, lambda: [trained.algo.task_loss(theta, task) for task in tasks]
        )
        use_statistics(problem.backbone, statistics)
    return problem, theta


@torch.no_grad()
def check_company(problem: Problem, theta: Theta) -> None:
    """Predict each query alone, then all together. `problem` is inductive."""
    algo, task = problem.few_shot, problem.draw_test()
    together = predict_queries(algo, theta, adapt_to(algo, theta, task), task)
    for i in range(len(together)):
        single = Episode(task.support, Examples(task.query.x[i : i + 1], task.query.y[i : i + 1]))
        alone = predict_queries(algo, theta, adapt_to(algo, theta, single), single)[0]
        difference = float((alone - together[i]).abs().max())
        require(
            difference <= CLOSE * (1 + float(together.abs().max())),
            f"the prediction for a query differs by {difference:.1e} without the other queries: they see each other",
        )


@torch.no_grad()
def check_figure(problem: Problem, theta: Theta) -> None:
    """Compare `task_metrics` with the figure of the predictions. `problem` predicts queries one by one."""
    algo, task = problem.few_shot, problem.draw_test()
    predictions, measured = (
        predict_queries(algo, theta, adapt_to(algo, theta, task), task),
        algo.task_metrics(theta, task),
    )
    for name, expected in measure(problem.tested.spec, predictions, task.query.y).items():
        require(name in measured, f"task_metrics has no {name}, which the tasks are judged by")
        found = float(measured[name])
        require(
            abs(found - float(expected)) <= CLOSE * (1 + float(expected.abs())),
            f"task_metrics says {name} {found:.4f}, the predictions from the support alone have {float(expected):.4f}",
        )


class Trained:
    """A short training in a temporary folder, and the same again from its middle on."""

    def __init__(self, settings: Settings) -> None:
        steps = replace(settings.trainer, steps=4, eval_every=2, log_every=1, keep_best=2, workers=1)
        self.settings = replace(settings, trainer=steps, logger={"name": "none"})
        with tempfile.TemporaryDirectory() as folder:
            whole, resumed = RunFolder(Path(folder, "whole")), RunFolder(Path(folder, "resumed"))
            self.losses, self.first = self.train(whole)
            resumed.last.parent.mkdir(parents=True)
            shutil.copy(whole.checkpoint("best-2"), resumed.last)
            shutil.copy(whole.path / "metrics.jsonl", resumed.path)
            self.again, self.second = self.train(resumed)

    def train(self, folder: RunFolder) -> tuple[list[str], Theta]:
        """Train from the last checkpoint on. Returns the lines of metrics.jsonl and theta."""
        folder.path.mkdir(parents=True, exist_ok=True)
        try:
            with folder.start({}, {}):
                train_run(Experiment.build(self.settings), folder, {"config": {}}, ALONE)
        except Failed as error:
            raise AssertionError(str(error)) from error
        lines = (folder.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return lines, checkpoint.load(folder.last)[0]["theta"]

    def check_finite(self) -> None:
        losses = [json.loads(line)["loss"] for line in self.losses if "loss" in json.loads(line)]
        require(len(losses) == 4 and all(map(math.isfinite, losses)), f"the losses of four steps are {losses}")

    def check_resume(self) -> None:
        for one, two in zip(self.losses, self.again, strict=True):
            require(one == two, f"the resumed training logs {two} where the other has {one}: state outside of theta?")
        for name, (a, b) in zip_theta(self.first, self.second):
            require(torch.equal(a, b), f"{name} differs after a resumed training: state outside of theta?")


def check_features(problem: Problem) -> None:
    backbone, x = problem.backbone, problem.source.sample(1, generator_for("check")).support.x[0]
    z = backbone(x)
    require(
        z.shape == (len(x), backbone.feature_size),
        f"features are {list(z.shape)}, feature_size is {backbone.feature_size}",
    )
    require(math.prod(backbone.feature_shape) == backbone.feature_size, "feature_shape and feature_size do not fit")
    names = dict(backbone.named_parameters())
    for name in backbone.modulated:
        require(name in names, f"modulated names {name}, which is no parameter")


@torch.no_grad()
def check_state(problem: Problem) -> None:
    backbone, weights = problem.backbone, draw_networks(problem.backbone)
    params = {name: p.double() for part in weights.values() for name, p in part.items()}
    x = problem.tested.sample(2, generator_for("check")).query.x.flatten(0, 1)
    if norm_names(backbone):
        use_statistics(backbone, collect_statistics(backbone, lambda: functional_call(backbone, params, (x,))))
    together = functional_call(backbone, params, (x,))
    require(torch.equal(together, functional_call(backbone, params, (x,))), "the same inputs have other features later")
    half = len(x) // 2
    difference = float((functional_call(backbone, params, (x[:half],)) - together[:half]).abs().max())
    require(
        difference <= CLOSE * (1 + float(together.abs().max())),
        f"an input's features differ by {difference:.1e} when the others are not there: "
        "use metarun.core.norm.BatchNorm, whose statistics can be given",
    )
