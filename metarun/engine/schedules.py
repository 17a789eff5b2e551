"""Learning-rate schedules: a factor on the outer optimiser's rate that depends on the step alone."""

import math
from dataclasses import dataclass

from metarun.config.registry import register
from metarun.config.schema import Count, Fraction


@register("schedule", "constant")
@dataclass(frozen=True)
class Constant:
    """The same rate throughout."""

    def factor(self, step: int, steps: int) -> float:
        return 1.0


@register("schedule", "linear")
@dataclass(frozen=True)
class Linear:
    """From 1 down to `final` along a line."""

    final: Fraction

    def factor(self, step: int, steps: int) -> float:
        return 1 + (self.final - 1) * step / steps


@register("schedule", "cosine")
@dataclass(frozen=True)
class Cosine:
    """From 1 down to `final` along half a cosine (Loshchilov & Hutter 2017)."""

    final: Fraction

    def factor(self, step: int, steps: int) -> float:
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * step / steps)) / 2


@register("schedule", "step")
@dataclass(frozen=True)
class Step:
    """Multiplied by `gamma` every `every` steps."""

    every: Count
    gamma: Fraction

    def factor(self, step: int, steps: int) -> float:
        return float(self.gamma ** (step // self.every))
