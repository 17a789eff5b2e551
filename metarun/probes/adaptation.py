"""Loss and headline metric after each inner step, for longer than the test adapts (Finn et al. 2017, Fig. 3).

A state after j steps is what the method adapts to with `inner_steps` j; what it does in steps that it was not trained
for is its own affair, as rates of each step are repeated.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from metarun.config.registry import register
from metarun.config.schema import Count
from metarun.config.traits import ProbeTraits
from metarun.core.batch import unstack
from metarun.core.objectives import adapt_to, headline_metric, measure, predict_queries
from metarun.core.types import Episode, FewShotAlgorithm, Metrics, TaskSpec, Theta
from metarun.probes.draw import draw_on
from metarun.probes.landscape import measure_losses
from metarun.probes.probe import Figures, Finding, Subject, estimate, require
from metarun.probes.reuse import check_states, start_of

LOSSES = {"support": "support loss", "query": "query loss"}


@register("probe", "adaptation", ProbeTraits(kinds=("classification", "regression"), ragged=True))
@dataclass(frozen=True)
class Adaptation:
    """What each inner step brings, on the support and on the queries."""

    times: Count

    def run(self, subject: Subject) -> Finding:
        tester, theta = subject.build_tester(), subject.theta
        name, steps = subject.row.algo["name"], subject.row.algo.get("inner_steps", 0)
        require(steps > 0, f"algo={name} takes no inner steps: there is nothing to count")
        algo = subject.build_algorithm(tester)
        with torch.no_grad():
            check_states(subject, theta, adapt_to(algo, theta, unstack(subject.draw_tasks(1, tester))[0]))
        look = partial(follow_steps, subject.spec, self.times * steps)
        found = subject.measure(look, tester).per_task
        table: list[Figures] = [
            {"step": step, **{figure: estimate(values[:, step]) for figure, values in found.items()}}
            for step in range(self.times * steps + 1)
        ]
        notes = [f"the test takes {steps} inner steps"]
        return Finding(table=table, draw=partial(draw, table, subject.headline, steps), notes=notes)


def follow_steps(spec: TaskSpec, steps: int, algo: FewShotAlgorithm, theta: Theta, episode: Episode) -> Metrics:
    """The losses of support and query, and the headline metric, after 0 .. `steps` inner steps: [steps + 1] each."""
    states = list(adapt_each(algo, steps, theta, episode))
    losses = measure_losses(spec.kind, algo, theta, states, episode)
    name = headline_metric(spec)
    scores = [measure(spec, predict_queries(algo, theta, phi, episode), episode.query.y)[name] for phi in states]
    return {**{LOSSES[part]: values for part, values in losses.items()}, name: torch.stack(scores)}


def adapt_each(algo: Any, steps: int, theta: Theta, episode: Episode) -> Iterator[Theta]:
    """Yield the weights before adaptation, and after 1 .. `steps` inner steps."""
    for step in range(1, steps + 1):
        phi = adapt_to(replace(algo, inner_steps=step), theta, episode)
        if step == 1:
            yield start_of(theta, phi)
        yield phi


def draw(table: list[Figures], name: str, steps: int, figure: Any) -> None:
    """Losses and the metric by step, with a line at the end of the test's adaptation."""
    from matplotlib.ticker import MaxNLocator

    figure.set_size_inches(10, 4.5)
    left, right = figure.subplots(1, 2)
    for loss in LOSSES.values():
        draw_on(left, table, None, "step", loss)
    draw_on(right, table, None, "step", name)
    left.legend(left.containers, LOSSES)
    left.set(ylabel="loss", yscale="log")
    for axis in (left, right):
        axis.axvline(steps, color="grey", linestyle="--", linewidth=1)
        axis.set(xlabel="inner steps; dashed: as many as in the test")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
