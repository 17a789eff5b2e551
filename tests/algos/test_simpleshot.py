"""SimpleShot's centre: the mean feature of training tasks where a test uses running averages."""

import torch

from metarun.core.batch import unstack
from metarun.core.norm import collect_statistics, use_statistics
from tests.reference.plain import features
from tests.reference.simpleshot import unit
from tests.support.tiny import algo_and_theta, episodes


@torch.no_grad()
def test_the_centre_is_the_mean_over_training_tasks() -> None:
    algo, theta = algo_and_theta("simpleshot", "conv4_strided")
    training, (test,) = unstack(episodes(3, seed=1)), unstack(episodes(1, seed=2))
    statistics = collect_statistics(algo.backbone, lambda: [algo.task_loss(theta, task) for task in training])
    seen = [features("conv4_strided", theta, part.x).mean(0) for task in training for part in task]
    centre = torch.stack(seen).mean(0)
    torch.testing.assert_close(statistics["centre"], centre, rtol=1e-12, atol=1e-12)

    use_statistics(algo.backbone, {"centre": statistics["centre"]})  # norm layers keep to the batch
    found = algo.predict(theta, algo.adapt(theta, test.support), test.query.x)
    z_support, z_query = (
        torch.stack([unit(z - centre) for z in features("conv4_strided", theta, part.x)]) for part in test
    )
    for z, logits in zip(z_query, found):
        distances = [((z - z_support[test.support.y == k].mean(0)) ** 2).sum() for k in range(len(logits))]
        torch.testing.assert_close(logits, -torch.stack(distances), rtol=1e-9, atol=1e-12)
