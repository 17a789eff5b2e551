"""Loggers of other projects."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from metarun.config.registry import register
from metarun.config.traits import LoggerTraits


class Logger(Protocol):
    """A service that draws curves."""

    places: ClassVar[list[str]]  # what it leaves in the run's folder

    def open(self, folder: Path, config: dict[str, Any]) -> None: ...
    def write(self, step: int, values: dict[str, float]) -> None: ...
    def close(self) -> None: ...


@register("logger", "none")
@dataclass
class NoLogger:
    """Files in the run folder only."""

    places: ClassVar[list[str]] = []

    def open(self, folder: Path, config: dict[str, Any]) -> None: ...

    def write(self, step: int, values: dict[str, float]) -> None: ...

    def close(self) -> None: ...


@register("logger", "tensorboard", LoggerTraits(needs="tensorboard"))
@dataclass
class TensorBoard:
    """Event files under the run folder, for `tensorboard --logdir outputs`."""

    places: ClassVar[list[str]] = ["tensorboard/"]

    def open(self, folder: Path, config: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def write(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


@register("logger", "wandb", LoggerTraits(needs="wandb"))
@dataclass
class WandB:
    """Weights & Biases; a resumed run continues the same curve."""

    places: ClassVar[list[str]] = ["wandb/"]
    project: str
    mode: str

    def open(self, folder: Path, config: dict[str, Any]) -> None:
        import wandb

        identifier = f"{folder.parent.name}-{folder.name}"
        self._run = wandb.init(
            project=self.project,
            mode=self.mode,
            dir=str(folder),
            config=config,
            id=identifier,
            resume="allow",
        )

    def write(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()
