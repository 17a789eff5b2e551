"""Tasks of control: the hidden parameters of a world, and a number that all chance follows from."""

from dataclasses import dataclass, fields
from typing import Any, cast

import torch

from metarun.config.registry import registered_traits
from metarun.core.seeding import SALTS
from metarun.core.types import Params, Split, TaskShape, TaskSpec, Trial, World
from metarun.datasets.preprocessing import Numbers


class Simulated:
    """What a world needs beside its functions to be a dataset: there is nothing to fetch.

    Splits differ only in the random numbers. A subclass is a dataclass of settings with the field `device`, and fulfils
    `metarun.core.types.World`.
    """

    device: torch.device

    def prepare(self) -> None:
        """Do nothing: tasks are simulated."""

    def describe(self) -> str:
        first, _, _ = (type(self).__doc__ or "").partition("\n")
        return f"{self.identity()['name']}: {first.rstrip('.')}; simulated while training, nothing to fetch"

    def notes(self) -> list[str]:
        """Nothing: splits differ in random numbers only."""
        return []

    def identity(self) -> dict[str, Any]:
        """The name and the settings."""
        settings = {field.name: getattr(self, field.name) for field in fields(cast(Any, self))}
        del settings["device"]
        return {"name": type(self).__name__.lower(), **settings}

    def preprocessing(self) -> dict[str, Any]:
        """Numbers as they are."""
        return Numbers().to_json()

    def tasks(self, split: Split, shape: TaskShape) -> "Trials":
        metric = registered_traits(type(self)).metric
        return Trials(cast(World, self), shape, metric, self.device)


def assume(latent: Params, **values: float) -> Params:
    """Parameters that do not depend on the task, in place of its own."""
    return {name: torch.full_like(latent[name], value) for name, value in values.items()}


@dataclass(frozen=True)
class Trials:
    """Tasks in a world: `shots` episodes that do not count, and `queries` that do."""

    world: World
    shape: TaskShape
    metric: str | None
    device: torch.device

    @property
    def spec(self) -> TaskSpec:
        world, (_, shots, queries) = self.world, self.shape
        return TaskSpec(
            "control",
            (world.observed,),
            world.actions,
            metric=self.metric,
            world=world,
            episodes=(shots, queries),
        )

    def sample(self, num_tasks: int, generator: torch.Generator) -> Trial:
        """latent [T, ...], salt [T]."""
        latent = self.world.latent(num_tasks, generator)
        salt = torch.randint(SALTS, (num_tasks,), generator=generator, device=generator.device)
        return Trial({name: value.to(self.device) for name, value in latent.items()}, salt.to(self.device))
