"""Feature reuse: CKA by hand, and layers that are frozen within the inner loop."""

import pytest
import torch
from torch import Tensor

from metarun.core.batch import map_tasks, unstack
from metarun.core.inner import flatten, freeze
from metarun.probes.reuse import cka, compare_states, list_layers, record
from tests.support.tiny import algo_and_theta, episodes


def draw(*size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(sum(size)), dtype=torch.float64)


def test_cka_of_a_rotated_and_scaled_representation_is_1_and_of_an_independent_one_is_low() -> None:
    x = draw(200, 6)
    rotation = torch.linalg.qr(draw(6, 6))[0]
    assert float(cka(x, 3 * x @ rotation + 5)) == pytest.approx(1.0, abs=1e-12)
    assert float(cka(x, draw(200, 7))) < 0.1
    assert float(cka(x, torch.zeros(200, 2))) == 0.0


def test_cka_is_kornblith_and_others_equation_3() -> None:
    x, y = (z - z.mean(0) for z in (draw(20, 4), draw(20, 3)))
    norm = torch.linalg.matrix_norm
    expected = norm(y.T @ x) ** 2 / (norm(x.T @ x) * norm(y.T @ y))
    torch.testing.assert_close(cka(draw(20, 4), draw(20, 3)), expected)


@pytest.mark.parametrize("execution", ["vmap", "loop"])
def test_frozen_layers_keep_theta_and_the_others_take_plain_steps_without_them(execution: str) -> None:
    algo, theta = algo_and_theta("maml", "conv4_strided", inner_steps=2)
    theta = {c: {n: p.detach() for n, p in params.items()} for c, params in theta.items()}
    (task,) = unstack(episodes(1))
    layers = list_layers(algo, algo.adapt(theta, task.support))
    assert list(layers) == [*(f"backbone.convs.{i}" for i in range(4)), "head"]
    frozen = [*layers["backbone.convs.0"], *layers["backbone.convs.1"]]
    with freeze(frozen):
        phi = flatten(map_tasks(lambda one: algo.adapt(theta, one.support), episodes(1), execution))  # type: ignore[arg-type]
    state = {name: p.clone() for name, p in flatten({part: theta[part] for part in ("backbone", "head")}).items()}
    for _ in range(2):
        moving = {name: p.clone().requires_grad_() for name, p in state.items() if name not in frozen}
        parts: dict[str, dict[str, Tensor]] = {"backbone": {}, "head": {}}
        for name, p in (state | moving).items():
            part, _, rest = name.partition(".")
            parts[part][rest] = p
        loss = torch.nn.functional.cross_entropy(algo.predict(theta, parts, task.support.x), task.support.y)
        slopes = torch.autograd.grad(loss, list(moving.values()))
        state |= {name: (p - algo.inner_lr * g).detach() for (name, p), g in zip(moving.items(), slopes)}
    for name, p in state.items():
        torch.testing.assert_close(phi[name][0], p)


def test_a_network_that_does_not_adapt_is_similar_to_itself() -> None:
    algo, theta = algo_and_theta("anil", "conv4_strided")
    with torch.no_grad():
        similar = map_tasks(lambda task: compare_states(algo, theta, task), episodes(2), "vmap")
    assert list(similar) == ["head"]  # the body is no part of what adapts
    maml, theta = algo_and_theta("maml", "conv4_strided", inner_lr=1e-9)
    with torch.no_grad():
        similar = map_tasks(lambda task: compare_states(maml, theta, task), episodes(2), "loop")
    assert all(float(value) == pytest.approx(1.0, abs=1e-6) for values in similar.values() for value in values)


def test_outputs_are_those_of_the_layers() -> None:
    algo, theta = algo_and_theta("maml", "conv4_strided")
    (task,) = unstack(episodes(1))
    phi = {part: theta[part] for part in ("backbone", "head")}
    outputs = record(algo, ["backbone.convs.0", "head"], theta, phi, task.query.x)
    first = torch.nn.functional.conv2d(task.query.x, theta["backbone"]["convs.0.weight"], stride=2, padding=1)
    torch.testing.assert_close(outputs["backbone.convs.0"], first)
    torch.testing.assert_close(outputs["head"], algo.predict(theta, phi, task.query.x))
