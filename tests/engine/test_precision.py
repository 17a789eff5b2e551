"""What is called bfloat16 is computed in bfloat16, by every method."""

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from metarun.core.batch import unstack
from metarun.core.solvers import solve
from metarun.engine.gradient import sum_tasks
from tests.support.tiny import ONE_BACKBONE, algo_and_theta, episodes


def to_float32(p: Tensor) -> Tensor:
    return p.detach().float().requires_grad_(p.requires_grad) if p.is_floating_point() else p


@pytest.mark.parametrize(("name", "backbone"), ONE_BACKBONE)
def test_the_gradient_of_a_task_is_that_of_rounded_products(name: str, backbone: str) -> None:
    algo, theta = algo_and_theta(name, backbone)
    algo.backbone.float()
    theta, tasks = tree_map(to_float32, (theta, episodes(1, backbone=backbone)))
    (task,) = unstack(tasks)
    gradients = []
    for bfloat16 in (False, True):
        metrics, gradient = sum_tasks(algo, "loop", bfloat16)(theta, task)
        assert metrics["loss"].isfinite()
        assert all(g.isfinite().all() for g in gradient)
        gradients.append(torch.cat([g.flatten().double() for g in gradient]))
    exact, rounded = gradients
    assert (exact - rounded).norm() > 1e-5 * exact.norm()  # float32 rounds to 1e-7, bfloat16 to 4e-3


def test_a_system_is_solved_in_float32() -> None:
    matrix, right = torch.eye(3, dtype=torch.bfloat16), torch.ones(3, 2)
    solution = solve(matrix, torch.tensor(1.0), right)
    assert solution.dtype == torch.float32
    torch.testing.assert_close(solution, right / 2)
    assert solve(matrix.double(), torch.tensor(1.0), right).dtype == torch.float64
