"""What adaptation changes in a network: Raghu et al. 2020, "Rapid Learning or Feature Reuse?",
https://arxiv.org/abs/1909.09157.

Similarity is linear CKA (Kornblith et al. 2019, https://arxiv.org/abs/1905.00414) of each layer's outputs for the
queries, before and after adaptation. A layer is frozen together with all before it, within the inner loop itself. The
last line has no inner loop: the head is left away, and cosines with the support's features decide (NIL).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from metarun.config.errors import ConfigError
from metarun.config.load import read_option
from metarun.config.registry import register, style
from metarun.config.traits import ProbeTraits
from metarun.core.inner import flatten, freeze
from metarun.core.objectives import adapt_to, headline_metric, measure
from metarun.core.types import Episode, FewShotAlgorithm, Metrics, TaskSpec, Theta
from metarun.probes.draw import draw_on
from metarun.probes.probe import Figures, Finding, Subject, answer, estimate

NOTHING, NIL = "nothing", "no inner loop"


@register("probe", "reuse", ProbeTraits(kinds=("classification", "regression"), ragged=True))
@dataclass(frozen=True)
class Reuse:
    """Similarity of each layer before and after adaptation, and accuracy where layers are frozen."""

    def run(self, subject: Subject) -> Finding:
        tester = subject.build_tester()
        algo, theta = subject.build_algorithm(tester), subject.theta
        task = Episode(*(type(part)(part.x[0], part.y[0]) for part in subject.draw_tasks(1, tester)))
        with torch.no_grad():
            phi = adapt_to(algo, theta, task)
            check_states(subject, theta, phi)
            layers = list_layers(algo, phi)
            everything = [name for names in layers.values() for name in names]
            with freeze(everything):
                kept = flatten(adapt_to(algo, theta, task))
            freezes = all(torch.equal(kept[name], flatten(theta)[name]) for name in everything)
        similar = subject.measure(compare_states, tester).per_task
        name = subject.headline
        table: list[Figures] = []
        for i, layer in enumerate((NOTHING, *layers)):
            frozen = [weight for names in list(layers.values())[:i] for weight in names]
            look = partial(adapt_frozen, frozen, tester.source.spec)
            table.append(
                {
                    "layer": layer,
                    "similarity": estimate(similar[layer]) if i else "",
                    name: estimate(subject.measure(look, tester).per_task[name]) if freezes or not i else "",
                }
            )
        if subject.spec.kind == "classification" and "backbone" in theta:
            row = replace(tester.row, algo=read_option("algo", "nil") | {"norm": tester.row.algo["norm"]})
            scores = subject.score(subject.build_tester(row)).per_task[name]
            table.append({"layer": NIL, "similarity": "", name: estimate(scores)})
        own = f"algo={tester.row.algo['name']} changes weights by steps of its own: no layer can be frozen"
        return Finding(table=table, draw=partial(draw, table, name), notes=[] if freezes else [own])


def check_states(subject: Subject, theta: Theta, phi: Any) -> None:
    """Raise ConfigError unless adaptation gives the weights of theta other values."""
    shapes = {name: p.shape for name, p in flatten(theta).items()}
    same = isinstance(phi, Mapping) and all(
        isinstance(params, Mapping) and all(shapes.get(f"{part}.{name}") == p.shape for name, p in params.items())
        for part, params in phi.items()
    )
    if not same or not phi:
        raise ConfigError(f"algo={subject.row.algo['name']} adapts no weights of its network: nothing to compare")


def start_of(theta: Theta, phi: Theta) -> Theta:
    """The values that adapted weights have in theta."""
    return {part: {name: theta[part][name] for name in params} for part, params in phi.items()}


def list_layers(algo: FewShotAlgorithm, phi: Theta) -> dict[str, list[str]]:
    """Layer, as "backbone.convs.0", in the network's order -> the full names of its weights that adaptation changes."""
    found: dict[str, list[str]] = {}
    for name in flatten(phi):
        layer = name.rpartition(".")[0]
        if find_module(algo, layer) is not None:
            found.setdefault(layer, []).append(name)
    return found


def find_module(algo: Any, layer: str) -> nn.Module | None:
    """The module of a template that a layer's name means; the whole template where that is one layer."""
    part, _, path = layer.partition(".")
    template = getattr(algo, part, None)
    return dict(template.named_modules()).get(path) if isinstance(template, nn.Module) else None


def record(algo: FewShotAlgorithm, layers: Sequence[str], theta: Theta, phi: Theta, x: Tensor) -> dict[str, Tensor]:
    """The outputs of layers for x [n, *input]: [n, ...] each."""
    outputs: dict[str, Tensor] = {}

    def keep(layer: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            outputs[layer] = output

        return hook

    hooks = [module.register_forward_hook(keep(layer)) for layer in layers if (module := find_module(algo, layer))]
    try:
        algo.predict(theta, phi, x)
    finally:
        for hook in hooks:
            hook.remove()
    return outputs


def compare_states(algo: FewShotAlgorithm, theta: Theta, episode: Episode) -> Metrics:
    """The similarity of each layer's outputs before and after adaptation."""
    phi = adapt_to(algo, theta, episode)
    before = start_of(theta, phi)
    layers = list(list_layers(algo, phi))
    first, second = (record(algo, layers, theta, state, episode.query.x) for state in (before, phi))
    return {layer: cka(first[layer].flatten(1), second[layer].flatten(1)) for layer in layers}


def cka(x: Tensor, y: Tensor) -> Tensor:
    """Linear centred kernel alignment of n outputs, [n, D] and [n, E]: 1 for the same up to rotation and scale."""
    x, y = x - x.mean(0), y - y.mean(0)
    first, second = x @ x.T, y @ y.T
    return (first * second).sum() / (first.square().sum().sqrt() * second.square().sum().sqrt()).clamp(min=1e-30)


def adapt_frozen(
    frozen: Sequence[str], spec: TaskSpec, algo: FewShotAlgorithm, theta: Theta, episode: Episode
) -> Metrics:
    """The headline metric where the inner loop leaves these weights as they are."""
    name = headline_metric(spec)
    with freeze(frozen):
        return {name: measure(spec, answer(algo, theta, episode), episode.query.y)[name]}


def draw(table: list[Figures], name: str, figure: Any) -> None:
    """Similarity by layer, and accuracy by the last frozen layer."""
    figure.set_size_inches(10, 4.5)
    left, right = figure.subplots(1, 2)
    draw_on(left, [row for row in table if row["similarity"] != ""], None, "layer", "similarity")
    left.set(ylabel="CKA before and after adaptation", ylim=(None, 1.02))
    draw_on(right, [row for row in table if row[name] != "" and row["layer"] != NIL], None, "layer", name)
    for row in table:
        if row["layer"] == NIL:
            right.axhline(style(name).scale * row[name].mean, color="grey", linestyle="--", label=NIL)
            right.legend(fontsize="small")
    right.set(xlabel="frozen up to")
    for axis in (left, right):
        axis.tick_params("x", rotation=45)
