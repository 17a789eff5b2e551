"""Driving: a car on a winding road, whose steering is unknown."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from metarun.config.registry import register
from metarun.config.schema import Count
from metarun.config.traits import DatasetTraits
from metarun.core.control import Reflex
from metarun.core.types import Agent, Params
from metarun.datasets.sampling.trials import Simulated

STEP = 1.0  # metres that the car goes in a step
WAVE = 2 * math.pi / 40  # of the road, in 1 / m
AHEAD = 3.0  # metres from the car to where it sees how the road bends
LOCK = 0.7  # radians, the largest angle of the wheels
FAR = 5.0  # metres from the middle of the road; what is farther off costs no more
STIFFNESS = 0.5  # of the hand controller, in 1 / m


class Car(NamedTuple):
    place: Tensor  # [P, 2] metres
    heading: Tensor  # [P] radians
    wheels: Tensor  # [P] radians, their angle
    width: Tensor  # [P] metres, amplitude of the road
    phase: Tensor  # [P] radians, of the road at x = 0


@register("dataset", "driving", DatasetTraits(kind="control", rules=("known", "average")))
@dataclass(frozen=True)
class Driving(Simulated):
    """A car that is to stay in the middle of a winding road (the kinematic bicycle).

    Hidden are its wheelbase (2 to 4 m), the angle of the wheels at full action (0.3 to 0.6 rad, to either side: half of
    all cars steer the wrong way round), their angle without any (up to 0.08 rad), and how much of the way to a new
    angle the wheels turn within a step (0.4 to 1). The road is new in every episode. The reward is minus the distance
    from its middle in metres, at most 5.
    """

    horizon: Count  # steps of 1 m
    device: torch.device

    observed = 4
    actions = 1
    discrete = False
    chances = 2

    def latent(self, tasks: int, generator: torch.Generator) -> Params:
        """Drawn for every task, [T] each: wheelbase in m, gain and offset in rad, and the wheels' speed per step."""
        u = torch.rand(5, tasks, generator=generator, device=generator.device)
        side = torch.where(u[4] < 0.5, -1.0, 1.0)
        return {
            "wheelbase": 2 + 2 * u[0],
            "gain": side * (0.3 + 0.3 * u[1]),
            "offset": 0.08 * (2 * u[2] - 1),
            "speed": 0.4 + 0.6 * u[3],
        }

    def reset(self, latent: Params, chance: Tensor) -> Car:
        """In the middle of the road, along it."""
        x = torch.zeros_like(chance[:, 0])
        width, phase = 0.5 + 1.5 * chance[:, 0], 2 * math.pi * chance[:, 1]
        car = Car(torch.stack([x, x], -1), x, x + latent["offset"], width, phase)
        y, slope, _ = follow_road(car, x)
        return car._replace(place=torch.stack([x, y], -1), heading=slope.atan())

    def observe(self, latent: Params, state: Car) -> Tensor:
        """The distance from the middle to the left in units of 5 m, sine and cosine of the angle to the road, and ten
        times its curvature a little ahead: [P, 4].
        """
        left, angle = compare_to_road(state)
        bend = 10 * follow_road(state, state.place[:, 0] + AHEAD)[2]
        return torch.stack([left / FAR, angle.sin(), angle.cos(), bend], -1)

    def step(self, latent: Params, state: Car, action: Tensor, chance: Tensor) -> tuple[Car, Tensor]:
        """action: [P, 1], of which -1 .. 1 counts."""
        target = latent["gain"] * action[:, 0].clamp(-1, 1) + latent["offset"]
        wheels = (state.wheels + latent["speed"] * (target - state.wheels)).clamp(-LOCK, LOCK)
        heading = state.heading + STEP * wheels.tan() / latent["wheelbase"]
        place = state.place + STEP * torch.stack([heading.cos(), heading.sin()], -1)
        state = state._replace(place=place, heading=heading, wheels=wheels)
        return state, -compare_to_road(state)[0].abs()

    def rule(self, name: str, latent: Params, episodes: int) -> Agent:
        """A hand controller that knows this car, or takes every car for the average of those that steer rightly."""
        average = {"wheelbase": 3.0, "gain": 0.45, "offset": 0.0}

        def react(observation: Tensor, chance: Tensor) -> Tensor:
            car = latent if name == "known" else {key: torch.full_like(latent[key], x) for key, x in average.items()}
            left, sine, _, bend = observation.unbind(-1)
            curvature = bend / 10 - 2 * STIFFNESS * sine - STIFFNESS**2 * FAR * left  # critically damped
            return (((car["wheelbase"] * curvature).atan() - car["offset"]) / car["gain"])[:, None]

        return Reflex(react)


def follow_road(car: Car, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Its y, slope and curvature at x: [P] each."""
    angle = WAVE * x + car.phase
    y, slope = car.width * angle.sin(), car.width * WAVE * angle.cos()
    return y, slope, -y * WAVE**2 * (1 + slope.square()) ** -1.5


def compare_to_road(car: Car) -> tuple[Tensor, Tensor]:
    """How far the car is to the left of the road's middle, within FAR, and its angle to the road: [P] each."""
    x, y = car.place.unbind(-1)
    middle, slope, _ = follow_road(car, x)
    along = slope.atan()
    return ((y - middle) * along.cos()).clamp(-FAR, FAR), car.heading - along
