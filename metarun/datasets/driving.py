"""Driving: a car on a winding road, whose steering is unknown."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metarun.config.registry import register
from metarun.config.schema import Count
from metarun.config.traits import DatasetTraits
from metarun.core.types import Agent, Params, Seen
from metarun.datasets.sampling.trials import Simulated, assume

STEP = 1.0  # metres that the car goes in a step
WAVE = 2 * math.pi / 40  # of the road, in 1 / m
AHEAD = 3.0  # metres from the car to where it sees how the road bends
LOCK = 0.8  # radians, the largest angle of the wheels
FAR = 5.0  # metres from the middle of the road; what is farther off costs no more
STIFFNESS = 0.7  # of the hand controller, in 1 / m


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

    Hidden are its wheelbase (2 to 4 m), how far the wheels turn at full action (0.4 to 1.6 rad), which action it takes
    to hold them straight (up to 0.5 to either side), and how much of the way to a new angle they turn within a step
    (0.2 to 1). The road is new in every episode. The reward is minus the distance from its middle in metres, at most 5.
    """

    horizon: Count  # steps of 1 m
    device: torch.device

    observed = 4
    actions = 1
    discrete = False
    chances = 2

    def latent(self, tasks: int, generator: torch.Generator) -> Params:
        """Drawn for every task, [T] each: wheelbase in m, gain in rad, offset of actions, speed of the wheels."""
        u = torch.rand(4, tasks, generator=generator, device=generator.device)
        return {
            "wheelbase": 2 + 2 * u[0],
            "gain": 0.4 + 1.2 * u[1],
            "offset": u[2] - 0.5,
            "speed": 0.2 + 0.8 * u[3],
        }

    def reset(self, latent: Params, chance: Tensor) -> Car:
        """In the middle of the road, along it."""
        x = torch.zeros_like(chance[:, 0])
        width, phase = 0.5 + 1.5 * chance[:, 0], 2 * math.pi * chance[:, 1]
        car = Car(torch.stack([x, x], -1), x, x - latent["gain"] * latent["offset"], width, phase)
        y, slope, _ = follow_road(car, x)
        return car._replace(place=torch.stack([x, y], -1), heading=slope.atan())

    def observe(self, latent: Params, state: Car) -> Tensor:
        """Metres to the left of the middle, five times the sine of the angle to the road, its cosine, and ten times the
        curvature of the road a little ahead: [P, 4].
        """
        left, angle = compare_to_road(state)
        bend = 10 * follow_road(state, state.place[:, 0] + AHEAD)[2]
        return torch.stack([left, 5 * angle.sin(), angle.cos(), bend], -1)

    def step(self, latent: Params, state: Car, action: Tensor, chance: Tensor) -> tuple[Car, Tensor]:
        """action: [P, 1], of which -1 .. 1 counts."""
        wheels = turn_wheels(latent, state.wheels, action[:, 0])
        heading = state.heading + STEP * wheels.tan() / latent["wheelbase"]
        place = state.place + STEP * torch.stack([heading.cos(), heading.sin()], -1)
        state = state._replace(place=place, heading=heading, wheels=wheels)
        return state, -compare_to_road(state)[0].abs()

    def draw(self, axes: Any, latent: Params, states: Car) -> None:
        """The road and the way of the car, seen from above."""
        x = torch.linspace(0, self.horizon * STEP, 200)
        road = Car(*(field[-1] for field in states))
        axes.plot(x.numpy(), follow_road(road, x)[0].numpy(), color="0.85", linewidth=10)
        axes.plot(*states.place.T.numpy(), linewidth=2)
        axes.plot(*states.place[-1].numpy(), "s", color="tab:red")
        axes.set(xlim=(-5, self.horizon * STEP + 5), ylim=(-20, 20))

    def rule(self, name: str, latent: Params, episodes: int) -> Agent:
        """A hand controller that knows this car, or takes every car for the average one."""
        average = assume(latent, wheelbase=3.0, gain=1.0, offset=0.0, speed=0.6)
        return Driver(latent if name == "known" else average)


@dataclass(frozen=True)
class Driver:
    """An agent that steers a car with these parameters; its memory is the angle that the wheels then have."""

    car: Params
    chances = 0

    def start(self, trajectories: int) -> Tensor:
        return self.car["gain"].new_zeros(trajectories)

    def act(self, memory: Tensor, seen: Seen, chance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        car = self.car
        wheels = torch.where(seen.begins > 0, -car["gain"] * car["offset"], memory)
        left, sine, _, bend = seen.observation.unbind(-1)
        curvature = bend / 10 - 2 * STIFFNESS * sine / 5 - STIFFNESS**2 * left  # critically damped
        target = wheels + ((car["wheelbase"] * curvature).atan() - wheels) / car["speed"]
        action = target / car["gain"] + car["offset"]
        return turn_wheels(car, wheels, action), action[:, None], action


def turn_wheels(car: Params, wheels: Tensor, action: Tensor) -> Tensor:
    """The wheels' angle after a step. wheels, action: [P]."""
    target = car["gain"] * (action.clamp(-1, 1) - car["offset"])
    return (wheels + car["speed"] * (target - wheels)).clamp(-LOCK, LOCK)


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
