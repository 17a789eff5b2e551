"""All contact with Hydra as an application: its arguments, its folders, its jobs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig

from metarun.config.errors import ConfigError
from metarun.config.load import load_settings, plain
from metarun.config.registry import config_folders
from metarun.runs.folder import RunFolder

if TYPE_CHECKING:  # imports torch, which takes seconds: only what trains or tests waits for that
    from metarun.engine.build import Experiment

Job = Callable[[DictConfig], float]


def _through_hydra(job: Job) -> None:
    """Let Hydra show what was asked for, or make the folders and call `job`, in a sweep for each of its runs."""
    base = {"version_base": "1.3"} if hydra.__version__.startswith("1.3") else {}  # later versions know no other
    hydra.main(config_path=str(CONFIGS), config_name="config", **base)(job)()


def _run(config: DictConfig, experiment: "Experiment | None" = None) -> float:
    """The run that Hydra composed, in the folder that it made."""
    context, values = HydraConfig.get(), plain(config)
    choices = {group: choice for group, choice in context.runtime.choices.items() if not group.startswith("hydra/")}
    settings = load_settings(values)
    from metarun.runs.run import run

    return run(settings, RunFolder(Path(context.runtime.output_dir)), values, choices, experiment)


PACKAGE = Path(__file__).resolve().parents[1]


CONFIGS = next(folder for folder in (PACKAGE / "configs", PACKAGE.parent / "configs") if folder.is_dir())


class PackagesConfigs(SearchPathPlugin):
    """The YAML files of packages that add components, wherever Hydra composes; of two of one name ours counts."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in config_folders():
            search_path.append("metarun-packages", f"file://{folder}")


@contextmanager
def _hydra(config_dir: str | None = None) -> Iterator[Hydra]:
    """What composes, with a user's own folder of configurations behind ours."""
    search_path = create_config_search_path(str(CONFIGS))
    if config_dir is not None:
        if not Path(config_dir).is_dir():
            raise ConfigError(f"--config-dir is {config_dir}: there is no such folder")
        folder = f"file://{Path(config_dir).absolute()}"
        search_path.prepend("command-line", folder, SearchPathQuery(provider="schema"))
    GlobalHydra.instance().clear()
    try:
        yield Hydra.create_main_hydra2("metarun", search_path)
    finally:
        GlobalHydra.instance().clear()


Plugins.instance().register(PackagesConfigs)
