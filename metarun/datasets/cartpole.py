"""A pole on a cart that is pushed to the left or to the right, of unknown masses and length, by an unknown motor."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metarun.config.registry import register
from metarun.config.schema import Count
from metarun.config.traits import DatasetTraits
from metarun.core.control import Reflex
from metarun.core.types import Agent, Params
from metarun.datasets.sampling.trials import Simulated, assume

STEP = 0.02  # seconds
GRAVITY = 9.8  # m / s^2
TILTED, AWAY = 0.2095, 2.4  # rad and m at which the pole counts as fallen
SWEEPS = 600  # of the Riccati equation


class Cart(NamedTuple):
    place: Tensor  # [P] metres
    speed: Tensor  # [P] m / s
    angle: Tensor  # [P] radians, 0 upright
    turning: Tensor  # [P] rad / s
    stands: Tensor  # [P] 1 until the pole has fallen, then 0


@register("dataset", "cartpole", DatasetTraits(kind="control", rules=("known", "average", "random")))
@dataclass(frozen=True)
class CartPole(Simulated):
    """A pole on a cart, with the dynamics of Gymnasium's CartPole-v1; the reward is 1 for each step that it stands.

    Hidden are the masses of cart (0.5 to 2 kg) and pole (0.05 to 0.5 kg), the pole's length (0.5 to 2 m), and the force
    of a push (6 to 14 N), which has the wrong direction in half of the tasks.
    """

    horizon: Count
    device: torch.device

    observed = 5
    actions = 2
    discrete = True
    chances = 4

    def latent(self, tasks: int, generator: torch.Generator) -> Params:
        """Drawn for every task, [T] each: masses in kg, half the pole's length in m, the force of choice 1 in N."""
        u = torch.rand(5, tasks, generator=generator, device=generator.device)
        return {
            "cart": 0.5 + 1.5 * u[0],
            "pole": 0.05 + 0.45 * u[1],
            "half": 0.25 + 0.75 * u[2],
            "force": torch.where(u[4] < 0.5, -1.0, 1.0) * (6 + 8 * u[3]),
        }

    def reset(self, latent: Params, chance: Tensor) -> Cart:
        """All four numbers between -0.05 and 0.05."""
        place, speed, angle, turning = (0.1 * chance - 0.05).unbind(-1)
        return Cart(place, speed, angle, turning, stands=torch.ones_like(place))

    def observe(self, latent: Params, state: Cart) -> Tensor:
        """Place, speed, angle and its change, scaled to about 1; and whether the pole stands."""
        place, speed, angle, turning, stands = state
        return torch.stack([place / AWAY, speed / 2, angle / TILTED, turning / 2, stands], -1) * stands[:, None]

    def step(self, latent: Params, state: Cart, action: Tensor, chance: Tensor) -> tuple[Cart, Tensor]:
        """action: [P], 0 or 1. What has fallen stays as it is."""
        place, speed, angle, turning, stands = state
        linear, angular = accelerate(latent, latent["force"] * (2 * action - 1), angle, turning)
        place, speed = place + STEP * speed, speed + STEP * linear
        angle, turning = angle + STEP * turning, turning + STEP * angular
        moved = Cart(place, speed, angle, turning, stands * ((angle.abs() < TILTED) & (place.abs() < AWAY)))
        return Cart(*(torch.where(stands > 0, new, old) for new, old in zip(moved, state))), stands

    def draw(self, axes: Any, latent: Params, states: Cart) -> None:
        """Cart and pole, and where the end of the pole was."""
        place, angle, length = states.place, states.angle, 2 * latent["half"]
        ends = torch.stack([place + length * angle.sin(), length * angle.cos()])  # [2, t]
        axes.plot(*ends.numpy(), color="0.7")
        axes.plot([float(place[-1])] * 2, [0, 0], "s", markersize=12, color="0.3")
        axes.plot(*zip((float(place[-1]), 0.0), ends[:, -1].tolist()), linewidth=4)
        axes.set(xlim=(-AWAY, AWAY), ylim=(-0.5, 2.5))

    def rule(self, name: str, latent: Params, episodes: int) -> Agent:
        """The sign of the linear quadratic regulator's force, for who knows the task, or takes it for the average of
        those whose motor pushes rightly; or any choice.
        """
        if name == "random":
            return Reflex(lambda observation, chance: (2 * chance[:, 0]).long(), chances=1)
        task = latent if name == "known" else assume(latent, cart=1.25, pole=0.275, half=0.625, force=10.0)
        gains = regulate(task)

        def react(observation: Tensor, chance: Tensor) -> Tensor:
            place, speed, angle, turning, _ = observation.unbind(-1)
            state = torch.stack([AWAY * place, 2 * speed, TILTED * angle, 2 * turning], -1)
            return (-(state @ gains) * task["force"] > 0).long()

        return Reflex(react)


def accelerate(latent: Params, force: Tensor, angle: Tensor, turning: Tensor) -> tuple[Tensor, Tensor]:
    """Of the cart in m / s^2 and of the pole in rad / s^2 (Barto, Sutton, Anderson 1983, without friction)."""
    total, half = latent["cart"] + latent["pole"], latent["half"]
    pushed = (force + latent["pole"] * half * turning.square() * angle.sin()) / total
    angular = (GRAVITY * angle.sin() - angle.cos() * pushed) / (
        half * (4 / 3 - latent["pole"] * angle.cos().square() / total)
    )
    return pushed - latent["pole"] * half * angular * angle.cos() / total, angular


def regulate(latent: Params) -> Tensor:
    """The gains [4] of the linear quadratic regulator around the upright pole, for costs of 1 of all states and 0.01 of
    the force; by iterating the Riccati equation.
    """
    like = latent["half"]
    none, one = torch.zeros_like(like), torch.ones_like(like)
    by_angle = accelerate_linear(latent, none, one)
    by_force = accelerate_linear(latent, one, none)
    rows = [[one, STEP * one, none, none], [none, one, STEP * by_angle[0], none]]
    rows += [[none, none, one, STEP * one], [none, none, STEP * by_angle[1], one]]
    a = torch.stack([torch.stack(row) for row in rows])
    b = STEP * torch.stack([none, by_force[0], none, by_force[1]])
    cost = torch.eye(4, dtype=like.dtype, device=like.device)
    worth = cost
    for _ in range(SWEEPS):
        gains = (b @ worth @ a) / (0.01 + b @ worth @ b)
        worth = cost + a.T @ worth @ (a - torch.outer(b, gains))
    return gains


def accelerate_linear(latent: Params, force: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """The same for small angles and no turning."""
    total, half = latent["cart"] + latent["pole"], latent["half"]
    angular = (GRAVITY * angle - force / total) / (half * (4 / 3 - latent["pole"] / total))
    return force / total - latent["pole"] * half * angular / total, angular
