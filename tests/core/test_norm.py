"""Norm layers: against PyTorch's own, and what the modes of meta-test mean."""

from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from metarun.config.registry import build, declaration, known
from metarun.core.batch import unstack
from metarun.core.norm import BatchNorm, collect_statistics, norm_names, use_statistics
from metarun.core.objectives import ONE_BY_ONE, predict_queries, read_twice
from metarun.core.types import Episode, Examples, FewShotAlgorithm, Theta
from metarun.engine.evaluate import Scores
from tests.support.tiny import FEW_SHOT, PAIRS, WAYS, algo_and_theta, episodes


def test_batch_statistics_equal_pytorchs_layer() -> None:
    ours, theirs = BatchNorm(3).double(), nn.BatchNorm2d(3).double()
    x = torch.randn(5, 3, 4, 4, dtype=torch.float64)
    for layer in (ours, theirs):
        nn.init.constant_(layer.get_parameter("weight"), 1.7)
        nn.init.constant_(layer.get_parameter("bias"), -0.3)
    torch.testing.assert_close(ours(x), theirs(x))


def test_given_statistics_equal_pytorchs_layer_in_eval_mode() -> None:
    ours, theirs = BatchNorm(3).double(), nn.BatchNorm2d(3).double().eval()
    x = torch.randn(5, 3, 4, 4, dtype=torch.float64)
    theirs.running_mean, theirs.running_var = torch.randn(3).double(), torch.rand(3).double() + 0.5
    use_statistics(nn.ModuleDict({"norm": ours}), {"norm.mean": theirs.running_mean, "norm.var": theirs.running_var})
    torch.testing.assert_close(ours(x), theirs(x))


def test_collected_statistics_are_those_of_all_batches_together() -> None:
    """For equal batches, mean and variance of the first layer's input are those of the concatenation."""
    network = nn.Sequential(BatchNorm(3)).double()
    batches = torch.randn(4, 6, 3, 2, 2, dtype=torch.float64) * 2 + 1
    found = collect_statistics(network, lambda: [network(batch) for batch in batches])
    together = batches.flatten(0, 1).transpose(0, 1).flatten(1)
    torch.testing.assert_close(found["0.mean"], together.mean(1))
    torch.testing.assert_close(found["0.var"], together.var(1, correction=0))
    assert network[0].mean is None  # collecting changes nothing


@pytest.mark.parametrize("backbone", known("backbone"))
def test_with_running_statistics_a_query_is_answered_alone_as_in_company(backbone: str) -> None:
    algo, theta = algo_and_theta("protonet", backbone)
    task = unstack(episodes(1, backbone=backbone))[0]
    use_statistics(algo.backbone, collect_statistics(algo.backbone, lambda: algo.task_loss(theta, task)))
    together = predict_queries(algo, theta, algo.adapt(theta, task.support), task)
    phi = algo.adapt(theta, task.support)
    alone = torch.cat([algo.predict(theta, phi, x[None]) for x in task.query.x])
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("name", FEW_SHOT)
def test_per_query_answers_do_not_depend_on_the_other_queries_and_batch_answers_do(name: str) -> None:
    task = unstack(episodes(1))[0]
    fewer = task._replace(query=type(task.query)(task.query.x[:2], task.query.y[:2]))
    backbone = next(backbone for algo, backbone in PAIRS if algo == name)
    for norm, same in (("per_query", True), ("batch", False)):
        algo, theta = algo_and_theta(name, backbone, norm=norm)
        phi = algo.adapt(theta, task.support)
        in_company, alone = predict_queries(algo, theta, phi, task)[:2], predict_queries(algo, theta, phi, fewer)
        assert torch.allclose(in_company, alone) is same


@pytest.mark.parametrize("name", FEW_SHOT)
def test_reading_twice_measures_what_two_tests_do(name: str) -> None:
    """Of sequences the second is left to a test of its own."""
    task, backbone = unstack(episodes(1))[0], next(backbone for algo, backbone in PAIRS if algo == name)
    alone: dict[str, Any] = {"transductive": False} if declaration("algo", name).traits.sees_queries else {}
    batch, per_query = (algo_and_theta(name, backbone, norm=norm, **alone) for norm in ("batch", "per_query"))
    expected = [algo.task_metrics(theta, task) for algo, theta in (batch, per_query)]
    with read_twice():
        found = Scores(batch[0].task_metrics(batch[1], task))
    torch.testing.assert_close(found.part(ONE_BY_ONE, False).per_task, expected[0], rtol=0, atol=0)
    second = found.part(ONE_BY_ONE, True).per_task
    torch.testing.assert_close(second, {} if name in ("mann", "lstm") else expected[1], rtol=0, atol=0)


def test_per_query_normalises_by_the_support_and_that_query() -> None:
    algo, theta = algo_and_theta("protonet", "conv4", norm="per_query")
    task = unstack(episodes(1))[0]
    phi = algo.adapt(theta, task.support)
    params = (theta["backbone"], theta["norm"])
    for i, x in enumerate(task.query.x):
        batch = torch.cat([task.support.x, x[None]])
        z = functional_call(algo.backbone, params, (batch,))[-1]
        expected = -((z - phi) ** 2).sum(-1)
        torch.testing.assert_close(predict_queries(algo, theta, phi, task)[i], expected)
    assert expected.shape == (WAYS,)


def test_per_query_never_has_more_examples_at_once_than_the_queries_are() -> None:
    """7 queries, each with a support of 2: two at a time have 6 examples, three would have 9."""
    batches = []

    class Sums:
        norm = "per_query"

        def predict(self, theta: Theta, phi: None, x: Tensor) -> Tensor:
            batches.append(x)  # one entry for all that vmap takes at once
            return x.cumsum(0)

    support, query = (Examples(torch.arange(float(n))[:, None], torch.zeros(n)) for n in (2, 7))
    sums = predict_queries(cast(FewShotAlgorithm, Sums()), {}, None, Episode(support, query))
    torch.testing.assert_close(sums, query.x + 0.0 + 1.0)
    assert len(batches) == 4  # of 2, 2, 2 and 1 queries


def test_norm_parameters_are_found_by_layer_and_not_by_name() -> None:
    network = build("backbone", {"name": "conv4_strided", "filters": 3}, input_shape=(1, 8, 8))
    assert norm_names(network) == {f"norms.{i}.bias" for i in range(4)}
