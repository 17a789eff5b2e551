from typing import Any

from torch import Tensor

from tests.reference.plain import Theta, inner_step, loss, predict

SETTINGS = {"inner_lr": 0.3, "inner_steps": 3, "multi_step_steps": 4, "first_order_steps": 0, "norm": "batch"}


def plain_loss(
    backbone_name: str,
    theta: Theta,
    episode: Any,
    *,
    inner_lr: float,
    inner_steps: int,
    multi_step_steps: int,
    first_order_steps: int,
) -> Tensor:
    """Query losses after each inner step, with that step's rates and norm parameters, in a weighted sum.

    Before `multi_step_steps` the steps but the last lose a part of 1/J each that grows evenly, and the last gains it.
    """
    support, query = episode
    taken = int(theta["clock"]["step"])
    phi, losses = theta, []
    for j in range(inner_steps):
        norm = {name: p[j] for name, p in theta["norm"].items()}
        rates = {name: rate[j] for name, rate in theta["lr"].items()}
        phi = {"backbone": phi["backbone"], "norm": norm, "head": phi["head"]}
        phi = inner_step(backbone_name, phi, support, ("backbone", "head"), rates, taken < first_order_steps)
        losses.append(loss(predict(backbone_name, phi, query.x), query.y))
    early = max(0.0, 1 / inner_steps - taken / (inner_steps * multi_step_steps)) if multi_step_steps else 0.0
    return early * sum(losses[:-1]) + (1 - (inner_steps - 1) * early) * losses[-1]
