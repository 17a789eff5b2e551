from typing import Any

from torch import Tensor

from tests.reference.plain import Theta, inner_step, loss, predict

SETTINGS = {"lr_range": [0.1, 0.4], "inner_steps": 2, "norm": "batch"}


def plain_loss(backbone_name: str, theta: Theta, episode: Any, *, lr_range: list[float], inner_steps: int) -> Tensor:
    """Query loss after gradient steps in which each weight has its own rate, theta["lr"]."""
    support, query = episode
    phi = {component: theta[component] for component in ("backbone", "norm", "head")}
    for _ in range(inner_steps):
        phi = inner_step(backbone_name, phi, support, ("backbone", "head"), theta["lr"])
    return loss(predict(backbone_name, phi, query.x), query.y)
