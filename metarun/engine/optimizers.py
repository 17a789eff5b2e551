"""Outer optimisers: PyTorch's own, one parameter group per component of theta."""

from dataclasses import dataclass
from typing import Any

import torch

from metarun.config.errors import ConfigError
from metarun.config.registry import register
from metarun.config.schema import Fraction, NonNegative, Positive

Groups = list[dict[str, Any]]


@register("optimizer", "adam")
@dataclass(frozen=True)
class Adam:
    """Adam (Kingma & Ba 2015)."""

    lr: Positive
    betas: list[Fraction]
    eps: Positive
    weight_decay: NonNegative

    def __post_init__(self) -> None:
        if len(self.betas) != 2:
            raise ConfigError(f"optimizer.betas is {self.betas}: it must be two numbers")

    def over(self, groups: Groups) -> torch.optim.Optimizer:
        beta1, beta2 = self.betas
        return torch.optim.Adam(groups, lr=self.lr, betas=(beta1, beta2), eps=self.eps, weight_decay=self.weight_decay)


@register("optimizer", "sgd")
@dataclass(frozen=True)
class SGD:
    """Gradient descent with momentum."""

    lr: Positive
    momentum: Fraction
    nesterov: bool
    weight_decay: NonNegative

    def over(self, groups: Groups) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            groups,
            lr=self.lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
        )


def move_rates(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Keep rates, and counts of steps, on the device where the optimiser can: a CUDA graph reads them there."""
    for group in optimizer.param_groups:
        if "capturable" in group:
            group |= {"capturable": True, "lr": torch.tensor(group["lr"], device=device)}
