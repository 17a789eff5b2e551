"""A pendulum with a motor that has to raise it and keep it upright, of unknown mass and length."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metarun.config.registry import register
from metarun.config.schema import Count, Positive
from metarun.config.traits import DatasetTraits
from metarun.core.control import Reflex
from metarun.core.types import Agent, Params
from metarun.datasets.sampling.trials import Simulated, assume

STEP = 0.05  # seconds
GRAVITY = 10.0  # m / s^2
FASTEST = 8.0  # rad / s
STIFFNESS = 5.0  # of the hand controller, in 1 / s


class Swing(NamedTuple):
    angle: Tensor  # [P] radians, 0 upright
    speed: Tensor  # [P] rad / s


@register("dataset", "pendulum", DatasetTraits(kind="control", rules=("known", "average")))
@dataclass(frozen=True)
class Pendulum(Simulated):
    """A rod on a motor, with the dynamics and the costs of Gymnasium's Pendulum-v1.

    Hidden are its mass (0.5 to 2 kg) and its length (0.5 to 1.5 m). Unlike there the motor is strong enough to raise it
    without a swing, so that how much torque is right depends on what hangs on it: inertia differs 36-fold, weight
    12-fold. An action of 1 is the full torque.
    """

    horizon: Count
    torque: Positive  # N m
    device: torch.device

    observed = 3
    actions = 1
    discrete = False
    chances = 2

    def latent(self, tasks: int, generator: torch.Generator) -> Params:
        """Drawn for every task, [T] each: mass in kg, length in m."""
        u = torch.rand(2, tasks, generator=generator, device=generator.device)
        return {"mass": 0.5 + 1.5 * u[0], "length": 0.5 + u[1]}

    def reset(self, latent: Params, chance: Tensor) -> Swing:
        """At any angle, with a speed of up to 1."""
        return Swing(math.pi * (2 * chance[:, 0] - 1), 2 * chance[:, 1] - 1)

    def observe(self, latent: Params, state: Swing) -> Tensor:
        """Cosine and sine of the angle, and the speed in units of 8 rad / s."""
        return torch.stack([state.angle.cos(), state.angle.sin(), state.speed / FASTEST], -1)

    def step(self, latent: Params, state: Swing, action: Tensor, chance: Tensor) -> tuple[Swing, Tensor]:
        """action: [P, 1], of which -1 .. 1 counts. The cost is of the state before it, as in Gymnasium."""
        torque = self.torque * action[:, 0].clamp(-1, 1)
        tilt = torch.remainder(state.angle + math.pi, 2 * math.pi) - math.pi
        cost = tilt.square() + 0.1 * state.speed.square() + 0.001 * torque.square()
        mass, length = latent["mass"], latent["length"]
        pull = 1.5 * GRAVITY / length * state.angle.sin() + 3 / (mass * length.square()) * torque
        speed = (state.speed + STEP * pull).clamp(-FASTEST, FASTEST)
        return Swing(state.angle + STEP * speed, speed), -cost

    def draw(self, axes: Any, latent: Params, states: Swing) -> None:
        """The rod, as long and as thick as it is, and where it was."""
        tips = latent["length"] * torch.stack([states.angle.sin(), states.angle.cos()])  # [2, t]
        axes.plot(*tips.numpy(), color="0.7")
        axes.plot(*zip((0, 0), tips[:, -1].tolist()), linewidth=4 * float(latent["mass"]), solid_capstyle="round")
        axes.set(xlim=(-1.7, 1.7), ylim=(-1.7, 1.7))

    def rule(self, name: str, latent: Params, episodes: int) -> Agent:
        """Computed torque, for who knows mass and length, or takes 1.25 kg and 1 m for granted."""
        rod = latent if name == "known" else assume(latent, mass=1.25, length=1.0)

        def react(observation: Tensor, chance: Tensor) -> Tensor:
            cosine, sine, speed = observation.unbind(-1)
            wanted = -2 * STIFFNESS * FASTEST * speed - STIFFNESS**2 * torch.atan2(sine, cosine)  # critically damped
            inertia = rod["mass"] * rod["length"].square() / 3
            return (inertia * (wanted - 1.5 * GRAVITY / rod["length"] * sine) / self.torque)[:, None]

        return Reflex(react)
