"""All contact with Hydra as an application and with sys.argv: options, search path, folders and jobs."""

import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NoReturn

import hydra
from hydra._internal import hydra as internal  # as are the next two: where Hydra finds its loader,
from hydra._internal.core_plugins.file_config_source import FileConfigSource  # its reader of files,
from hydra._internal.utils import get_args_parser  # and its options
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf

from metarun.cli.grammar import expand_home, show
from metarun.cli.plain import Loader
from metarun.config.errors import ConfigError, did_you_mean, explain_os_error, find_reason
from metarun.config.load import load_settings, resolve
from metarun.config.registry import CONFIGS as CONFIGS
from metarun.config.registry import config_folders
from metarun.runs.folder import RunFolder

if TYPE_CHECKING:  # imports torch, which takes seconds: only what trains or tests waits for that
    from metarun.engine.build import Experiment

Job = Callable[[DictConfig], float]

BASE = {"version_base": "1.3"} if hydra.__version__.startswith("1.3") else {}  # later versions know no other
OPEN_TABLES = ("eval.algo", "eval.dataset", "eval.variants")  # any key may be new in them, without Hydra's "+"
GLOBAL = "# @package _global_"  # without this line Hydra puts an experiment's values below a key of its own


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
        parser.error = _refuse  # type: ignore[method-assign]
        found = vars(parser.parse_intermixed_args(words))
        opened = re.compile(rf"({'|'.join(OPEN_TABLES)})[.=]")
        typed = map(expand_home, found.pop("overrides"))
        overrides = [f"++{text}" if opened.match(text) else text for text in typed]
        for word in overrides:
            if re.fullmatch(r"[\w./-]+", word):
                hint = did_you_mean(word, [*commands, "--help", "--version"])
                raise ConfigError(f"{word} is no command{hint}: choose from {', '.join(commands)}, or set name=value")
        if found.pop("config_path"):
            raise ConfigError("--config-path would replace metarun's own configuration: use --config-dir to add to it")
        if found.pop("experimental_rerun"):
            raise ConfigError("--experimental-rerun is no option of metarun: metarun resume RUN continues a run")
        if (found["package"] or found["resolve"]) and not found["cfg"]:
            raise ConfigError("--package and --resolve are about what is printed: use them with --cfg job")
        own = {name: found.pop(name) for name in ("config_dir", "multirun")}
        name = found.pop("config_name") or "config"
        flags = {name.replace("_", "-"): value for name, value in found.items() if value not in (None, False)}
        return cls(overrides, config_name=name, flags=flags, **own)

    def arguments(self) -> list[str]:
        """The same for Hydra's own parser, which wants its options in front."""
        options = {"config-name": self.config_name, "multirun": self.multirun}
        given = {name: value for name, value in {**options, **self.flags}.items() if value}
        return [f"--{name}" if value is True else f"--{name}={value}" for name, value in given.items()] + self.overrides


def _refuse(message: str) -> NoReturn:
    raise ConfigError(f"{show(message)}; see metarun --help")


class ConfigFolders(SearchPathPlugin):
    """Where Hydra finds YAML files besides metarun's own, which count where two have the same name."""

    own: ClassVar[str | None] = None  # the user's folder, within `prepare_loader`

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in config_folders():
            search_path.append("metarun-packages", f"yaml://{folder}")
        if self.own is not None:
            search_path.append("command-line", f"yaml://{self.own}")


class YamlFiles(FileConfigSource):
    """Read the YAML files of others, also with a byte order mark. Raises ConfigError, which names the file."""

    @staticmethod
    def scheme() -> str:
        return "yaml"

    def load_config(self, config_path: str) -> ConfigResult:
        file = Path(self.path) / self._normalize_file_name(config_path)
        try:
            with file.open(encoding="utf-8-sig") as text:
                header = self._get_header_dict(text.read(512))
                text.seek(0)
                config = OmegaConf.load(text)
        except UnicodeDecodeError as error:
            raise ConfigError(f"{file} is not UTF-8 text: {_find_line(file)} cannot be read") from error
        except (OSError, ValueError) as error:  # also OmegaConf's for a file that holds a single word
            raise ConfigError(f"{file} cannot be read: {str(error).splitlines()[0]}") from error
        if not isinstance(config, DictConfig):
            raise ConfigError(f"{file} must hold settings, each as name: value")
        if config_path.startswith("experiment/") and header["package"] is None:
            raise ConfigError(f"{file}: its first line must be {GLOBAL}")
        return ConfigResult(config=config, path=f"{self.scheme()}://{self.path}", provider=self.provider, header=header)


def _find_line(file: Path) -> str:
    """The first line that is not UTF-8: "line 3"."""
    lines = file.read_bytes().splitlines()
    return next(f"line {n}" for n, line in enumerate(lines, 1) if "\ufffd" in line.decode(errors="replace"))


for plugin in (ConfigFolders, YamlFiles):
    Plugins.instance().register(plugin)


@contextmanager
def prepare_loader(config_dir: str | None) -> Iterator[None]:
    """Let Hydra find the user's YAML files, and complete plain commands. Raises ConfigError."""
    ConfigFolders.own = str(check_folder(config_dir).absolute()) if config_dir is not None else None
    before = vars(internal)["ConfigLoaderImpl"]
    vars(internal)["ConfigLoaderImpl"] = Loader
    try:
        yield
    finally:
        ConfigFolders.own = None
        vars(internal)["ConfigLoaderImpl"] = before


@contextmanager
def search(config_dir: str | None = None) -> Iterator[ConfigLoader]:
    """Let `hydra.compose` find the YAML files of metarun, of packages and of the user. Raises ConfigError."""
    GlobalHydra.instance().clear()
    with prepare_loader(config_dir), hydra.initialize_config_dir(str(CONFIGS), job_name="metarun", **BASE):
        yield GlobalHydra.instance().config_loader()


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
    """Let Hydra show what the request asks for, or make the folders and call `job`, in a sweep for each run.

    Raises ConfigError where Hydra or one of its plug-ins fails; with HYDRA_FULL_ERROR=1 what it raised.
    """
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # otherwise Hydra prints a traceback, and exits
    try:
        with set_argv(request), prepare_loader(request.config_dir):
            hydra.main(config_path=str(CONFIGS), config_name="config", **BASE)(job)()
    except Exception as error:
        if before == "1" or isinstance(error, ConfigError):
            raise
        if isinstance(error, OSError):
            raise ConfigError(f"Hydra cannot write the run's folder: {explain_os_error(error)}") from error
        plugins = [text for text in request.overrides if text.startswith("hydra/")]
        raise ConfigError(f"{' '.join(plugins) or 'Hydra'} fails: {find_reason(error)}") from error
    finally:
        os.environ.pop("HYDRA_FULL_ERROR")
        os.environ.update({} if before is None else {"HYDRA_FULL_ERROR": before})


def run_composed(config: DictConfig, experiment: "Experiment | None" = None) -> float:
    """Run what Hydra composed, in the folder that it made. Returns the best validation score."""
    context, values = HydraConfig.get(), resolve(config)
    choices = {group: choice for group, choice in context.runtime.choices.items() if not group.startswith("hydra/")}
    settings = load_settings(values)
    from metarun.runs.run import run

    return run(settings, RunFolder(Path(context.runtime.output_dir)), values, choices, experiment)
