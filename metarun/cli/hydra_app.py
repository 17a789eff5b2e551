"""All contact with Hydra as an application and with sys.argv: options, search path, folders and jobs."""

import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import hydra
from hydra._internal.utils import get_args_parser  # the only internal of Hydra in use: its own options
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig

from metarun.config.errors import ConfigError, did_you_mean
from metarun.config.load import load_settings, resolve
from metarun.config.registry import config_folders
from metarun.runs.folder import RunFolder

if TYPE_CHECKING:  # imports torch, which takes seconds: only what trains or tests waits for that
    from metarun.engine.build import Experiment

Job = Callable[[DictConfig], float]

PACKAGE = Path(__file__).resolve().parents[1]
CONFIGS = next(folder for folder in (PACKAGE / "configs", PACKAGE.parent / "configs") if folder.is_dir())
BASE = {"version_base": "1.3"} if hydra.__version__.startswith("1.3") else {}  # later versions know no other
OPEN_TABLES = ("eval.algo.", "eval.variants.")  # any key may be new in them, without Hydra's "+"


@dataclass(frozen=True)
class Request:
    """What is asked of Hydra: by the user, or by a sub-command."""

    overrides: list[str]
    config_dir: str | None = None  # a folder with YAML files of the user's own
    config_name: str = "config"
    multirun: bool = False
    flags: Mapping[str, str | bool] = field(default_factory=dict)  # Hydra's other options: {"cfg": "job"}

    @classmethod
    def parse(cls, words: Sequence[str], commands: Collection[str]) -> "Request":
        """Read what was typed after `metarun`. Raises ConfigError.

        commands: what a word that is neither an option nor a setting may have been meant for.
        """
        parser = get_args_parser()
        parser.prog, parser.usage = "metarun", "metarun [--help] [--multirun] [--cfg job] [group=option] [path=value]"
        found = vars(parser.parse_intermixed_args(words))
        overrides = [f"++{text}" if text.startswith(OPEN_TABLES) else text for text in found.pop("overrides")]
        for word in overrides:
            if re.fullmatch(r"[\w./-]+", word):
                hint = did_you_mean(word, [*commands, "--help", "--version"])
                raise ConfigError(f"{word} is no command{hint}: choose from {', '.join(commands)}, or set name=value")
        if found.pop("config_path"):
            raise ConfigError("--config-path would replace metarun's own configuration: use --config-dir to add to it")
        own = {name: found.pop(name) for name in ("config_dir", "multirun")}
        name = found.pop("config_name") or "config"
        flags = {name.replace("_", "-"): value for name, value in found.items() if value not in (None, False)}
        return cls(overrides, config_name=name, flags=flags, **own)

    def arguments(self) -> list[str]:
        """The same for Hydra's own parser, which wants its options in front."""
        options = {"config-dir": self.config_dir, "config-name": self.config_name, "multirun": self.multirun}
        given = {name: value for name, value in {**options, **self.flags}.items() if value}
        return [f"--{name}" if value is True else f"--{name}={value}" for name, value in given.items()] + self.overrides


class ConfigFolders(SearchPathPlugin):
    """Where Hydra finds YAML files besides metarun's own, which count where two have the same name."""

    own: ClassVar[str | None] = None  # the user's folder, while `search` is at work

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in config_folders():
            search_path.append("metarun-packages", f"file://{folder}")
        if self.own is not None:
            search_path.append("command-line", f"file://{self.own}")


Plugins.instance().register(ConfigFolders)


@contextmanager
def search(config_dir: str | None = None) -> Iterator[ConfigLoader]:
    """Let `hydra.compose` find the YAML files of metarun, of packages and of the user. Raises ConfigError."""
    GlobalHydra.instance().clear()
    ConfigFolders.own = str(check_folder(config_dir).absolute()) if config_dir is not None else None
    try:
        with hydra.initialize_config_dir(str(CONFIGS), job_name="metarun", **BASE):
            yield GlobalHydra.instance().config_loader()
    finally:
        ConfigFolders.own = None


def check_folder(config_dir: str) -> Path:
    """The folder that --config-dir names. Raises ConfigError."""
    if not Path(config_dir).is_dir():
        raise ConfigError(f"--config-dir is {config_dir}: there is no such folder")
    return Path(config_dir)


@contextmanager
def set_argv(request: Request) -> Iterator[None]:
    """Make a request what Hydra finds in sys.argv."""
    before = sys.argv
    sys.argv = ["metarun", *request.arguments()]
    try:
        yield
    finally:
        sys.argv = before


def call(request: Request, job: Job) -> None:
    """Let Hydra show what the request asks for, or make the folders and call `job`, in a sweep for each run."""
    with set_argv(request):
        hydra.main(config_path=str(CONFIGS), config_name="config", **BASE)(job)()


def run_composed(config: DictConfig, experiment: "Experiment | None" = None) -> float:
    """Run what Hydra composed, in the folder that it made. Returns the best validation score."""
    context, values = HydraConfig.get(), resolve(config)
    choices = {group: choice for group, choice in context.runtime.choices.items() if not group.startswith("hydra/")}
    settings = load_settings(values)
    from metarun.runs.run import run

    return run(settings, RunFolder(Path(context.runtime.output_dir)), values, choices, experiment)
