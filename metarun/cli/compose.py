"""From overrides to a composed configuration. Never imports torch."""

import hashlib
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import hydra
import omegaconf
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError

from metarun.cli.grammar import parse, show
from metarun.cli.hydra_app import CONFIGS, check_folder, search
from metarun.cli.mistakes import check_choice, explain, refuse_value
from metarun.config.errors import ConfigError, find_reason
from metarun.config.load import identity, resolve
from metarun.config.registry import config_folders, dataset_traits


def compose(overrides: Sequence[str], config_dir: str | None = None, config_name: str = "config") -> DictConfig:
    """Compose one job, with Hydra's own node. Raises ConfigError in place of Hydra's exceptions."""
    parsed = parse(overrides)
    for override in parsed:
        if override.is_sweep_override():
            text = show(override.input_line or "")
            raise ConfigError(f"{text} asks for several runs: did you mean metarun --multirun {text}?")
    with search(config_dir) as loader, warnings.catch_warnings():
        warnings.filterwarnings("error", "provider=")  # a search path that is not there
        elsewhere = any(
            override.key_or_group == "hydra.searchpath" for override in parsed
        )  # more options than are known
        for override in parsed:
            if not elsewhere or override.key_or_group.startswith("hydra/"):
                check_choice(override, loader)
        try:
            return hydra.compose(config_name, list(overrides), return_hydra_config=True)
        except (HydraException, OmegaConfBaseException, ValueError, TypeError, UserWarning, MarkedYAMLError) as error:
            raise ConfigError(explain(error, loader, overrides)) from error


def find_folder(config: DictConfig, key: Literal["hydra.run.dir", "hydra.sweep.dir"]) -> Path:
    """The absolute folder that a composed configuration names. Raises ConfigError."""
    try:
        name = str(OmegaConf.select(config, key))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{key}: {find_reason(error)}") from error
    if not name:
        raise ConfigError(f"{key} is empty: it must name a folder; . is the current one")
    return Path(name).absolute()


def change(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Replace some values of a plain configuration; `load_settings` checks whether new keys are allowed."""
    config = OmegaConf.create(dict(values))
    for override in parse(overrides):
        if override.is_sweep_override():
            raise ConfigError(f"{show(override.input_line or '')} is a list of values: give one")
        try:
            OmegaConf.update(config, override.key_or_group, override.value(), force_add=True)
        except OmegaConfBaseException as error:
            raise ConfigError(refuse_value(override.input_line or "")) from error
    return resolve(config)


def name_run(*, _root_: DictConfig) -> str:
    """The folder of a run: what it is, in words, and a hash of its identity."""
    choices, values = _root_.hydra.runtime.choices, identity(resolve(_root_))
    digest = hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:8]
    traits = dataset_traits(values["dataset"])
    ways = f"{values['ways']}w" if traits.kind == "classification" else ""
    size = f"{values['shots']}+{values['queries']}" if traits.kind == "control" else f"{ways}{values['shots']}s"
    return f"{choices.algo}-{choices.dataset}-{size}/seed{values['seed']}-{digest}"


REGISTER = "register_new_resolver" if omegaconf.__version__.startswith("2.3") else "register_resolver"
getattr(OmegaConf, REGISTER)("run_name", name_run, replace=True)


def read_comments(group: str, config_dir: str | None = None) -> dict[str, list[str]]:
    """Option -> the comments of its file, without the `# `, for every option of a config group."""
    found: dict[str, list[str]] = {}
    for folder in (CONFIGS, *config_folders(), *([check_folder(config_dir)] if config_dir is not None else [])):
        for path in sorted((folder / group).rglob("*.yaml")):
            lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
            option = path.relative_to(folder / group).with_suffix("").as_posix()
            found.setdefault(option, [line[2:] for line in lines if re.match(r"# (?!@)", line)])
    return found


def describe_options(group: str, config_dir: str | None = None) -> dict[str, str]:
    """Option -> the first comment of its file, for every option of a config group."""
    return {option: comments[0] if comments else "" for option, comments in read_comments(group, config_dir).items()}
