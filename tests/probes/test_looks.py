"""Other looks at a model: the line of adaptation, meta-gradients, principal components, other data."""

import pytest
import torch

from metarun.config.traits import Kind
from metarun.core.batch import unstack
from metarun.core.objectives import loss
from metarun.core.types import Episode, Examples
from metarun.probes.adaptation import follow_steps
from metarun.probes.embedding import measure_spread, project
from metarun.probes.landscape import COSINE, compare_gradients, follow_line, mean_of_pairs, span_plane
from metarun.probes.shift import complete
from tests.support.tiny import algo_and_theta, episodes


def test_the_line_has_theta_at_0_and_phi_at_1_and_is_straight() -> None:
    algo, theta = algo_and_theta("maml", "mlp")
    theta = {c: {n: p.detach() for n, p in params.items()} for c, params in theta.items()}
    (task,) = unstack(episodes(1))
    found = follow_line("classification", [0.0, 1.0, 2.0], algo, theta, task)
    phi = algo.adapt(theta, task.support)
    beyond = {c: {n: 2 * p - theta[c][n] for n, p in params.items()} for c, params in phi.items()}
    before = {c: theta[c] for c in phi}
    for name, part in zip(("support", "query"), task):
        expected = [loss("classification", algo.predict(theta, at, part.x), part.y) for at in (before, phi, beyond)]
        torch.testing.assert_close(found[name], torch.stack(expected))


def test_the_plane_has_the_inner_loop_s_states_at_its_corners() -> None:
    first, theta = algo_and_theta("maml", "mlp", inner_steps=1)
    second, _ = algo_and_theta("maml", "mlp", inner_steps=2)
    theta = {c: {n: p.detach() for n, p in params.items()} for c, params in theta.items()}
    (task,) = unstack(episodes(1))
    found = span_plane("classification", [0.0, 1.0], second, first, theta, task)
    start, one, two = second.trajectory(theta, task.support)
    aside = {c: {n: p + two[c][n] - one[c][n] for n, p in params.items()} for c, params in start.items()}
    for name, part in zip(("support", "query"), task):
        at = [loss("classification", first.predict(theta, state, part.x), part.y) for state in (start, aside, one, two)]
        torch.testing.assert_close(found[name], torch.stack(at).view(2, 2))
    u, v = (
        torch.cat([(b[c][n] - p).flatten() for c, params in a.items() for n, p in params.items()])
        for a, b in ((start, one), (one, two))
    )
    assert found[COSINE].item() == pytest.approx((u @ v / (u.norm() * v.norm())).item())


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_each_step_is_a_plain_one_of_gradient_descent(kind: Kind) -> None:
    algo, theta = algo_and_theta("maml", "mlp", kind, inner_steps=1)
    (task,) = unstack(episodes(1, kind))
    found = follow_steps(algo.spec, 3, algo, {c: {n: p.detach() for n, p in w.items()} for c, w in theta.items()}, task)
    phi = {c: dict(theta[c]) for c in ("backbone", "head")}
    norm = set(theta["norm"]) if "norm" in theta else set()
    for step in range(4):
        at = [loss(kind, algo.predict(theta, phi, part.x), part.y) for part in task]
        torch.testing.assert_close([found["support loss"][step], found["query loss"][step]], [x.detach() for x in at])
        if kind == "classification":
            right = algo.predict(theta, phi, task.query.x).argmax(-1) == task.query.y
            assert found["accuracy"][step].item() == pytest.approx(right.double().mean().item())
        names = [(c, n) for c in phi for n in phi[c] if n not in norm]
        slopes = torch.autograd.grad(at[0], [phi[c][n] for c, n in names])
        for (c, n), slope in zip(names, slopes):
            phi[c][n] = (phi[c][n] - algo.inner_lr * slope).detach().requires_grad_()


def test_meta_gradients_of_tasks_are_plain_autograds() -> None:
    algo, theta = algo_and_theta("protonet", "mlp")
    tasks = unstack(episodes(3))
    fixed = {c: {n: p.detach() for n, p in params.items()} for c, params in theta.items()}
    norms, cosines = compare_gradients(algo, fixed, tasks)
    leaves = [p for params in theta.values() for p in params.values()]
    plain = []
    for task in tasks:
        slopes = torch.autograd.grad(algo.task_loss(theta, task)[0], leaves, materialize_grads=True)
        plain.append(torch.cat([slope.flatten() for slope in slopes]))
    torch.testing.assert_close(norms, torch.stack([slope.norm() for slope in plain]))
    for i in range(3):
        for j in range(3):
            expected = torch.cosine_similarity(plain[i], plain[j], dim=0)
            torch.testing.assert_close(cosines[i, j], expected)
    assert mean_of_pairs(cosines) == pytest.approx(float(cosines[[0, 0, 1], [1, 2, 2]].mean()))


def test_components_keep_distances_of_points_in_a_plane() -> None:
    generator = torch.Generator().manual_seed(0)
    plane = torch.linalg.qr(torch.randn(7, 2, generator=generator, dtype=torch.float64))[0]
    flat = torch.randn(12, 2, generator=generator, dtype=torch.float64) * torch.tensor([3.0, 1.0]) + 5
    support, query = project(((flat @ plane.T)[:4], (flat @ plane.T)[4:]))
    torch.testing.assert_close(torch.cdist(torch.cat([support, query]), support), torch.cdist(flat, flat[:4]))
    assert float(torch.cat([support, query]).std(0).diff()) < 0  # the first has more


def test_spread_by_hand() -> None:
    """Class means 0 and 4; queries 1 (of 0), 5 (of 1) and 3 (of 0)."""
    z = (torch.tensor([[-1.0], [1.0], [4.0]]), torch.tensor([[1.0], [5.0], [3.0]]))
    task = Episode(Examples(z[0], torch.tensor([0, 0, 1])), Examples(z[1], torch.tensor([0, 1, 0])))
    found = measure_spread(z, task)
    assert found["spread"] == pytest.approx((1 + 1 + 9) / 3 / ((1 + 9 + 25 + 1 + 9 + 1) / 6))
    assert found["nearest is own"] == pytest.approx(2 / 3)


def test_another_dataset_has_pictures_of_the_same_form() -> None:
    form = {"kind": "pictures", "size": 20, "channels": 1, "filter": "box", "ink": 1, "mean": None}
    assert complete({"rotations_test": "none"}, form) == {"rotations_test": "none"}
    values = complete({"name": "glyphs", "classes_test": 7}, form)
    assert (values["name"], values["image_size"], values["classes_test"]) == ("glyphs", 20, 7)
    assert "channels" not in values
    values = complete(
        {"name": "miniimagenet", "filter": "nearest"}, form
    )  # a collection of dataset=folder, whose name is images
    assert (values["name"], values["collection"]) == ("images", "miniimagenet")
    assert (values["image_size"], values["channels"], values["filter"]) == (20, 1, "nearest")
