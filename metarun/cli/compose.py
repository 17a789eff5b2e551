"""From the command line to checked settings: Hydra composes, we explain what is wrong. Never imports torch."""

import hashlib
import json
import re
import warnings
from collections.abc import Mapping
from typing import Any

from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError

from metarun.cli.grammar import parsed
from metarun.cli.hydra_app import CONFIGS, _hydra
from metarun.cli.mistakes import explained
from metarun.config.errors import ConfigError
from metarun.config.load import identity, plain
from metarun.config.registry import config_folders


def changed(values: Mapping[str, Any], overrides: list[str]) -> dict[str, Any]:
    """A plain configuration with some values replaced; keys that are new are left to `load_settings`."""
    config = OmegaConf.create(dict(values))
    for override in parsed(overrides):
        if override.is_sweep_override():
            raise ConfigError(f"{override.input_line} is a list of values: one at a time")
        OmegaConf.update(config, override.key_or_group, override.value(), force_add=True)
    return plain(config)


def run_name(*, _root_: DictConfig) -> str:
    """Folder of a run: what it is, in words, and a hash of its identity."""
    choices, values = _root_.hydra.runtime.choices, identity(plain(_root_))
    digest = hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:8]
    return f"{choices.algo}-{choices.dataset}-{values['ways']}w{values['shots']}s/seed{values['seed']}-{digest}"


OmegaConf.register_new_resolver("run_name", run_name, replace=True)


def compose(overrides: list[str], config_dir: str | None = None, config_name: str = "config") -> DictConfig:
    """What Hydra composes for one job, with its own node. Raises ConfigError in place of Hydra's exceptions."""
    for override in parsed(overrides):
        if override.is_sweep_override():
            text = override.input_line
            raise ConfigError(f"{text} asks for several runs: did you mean metarun --multirun {text}?")
    with _hydra(config_dir) as hydra, warnings.catch_warnings():
        warnings.filterwarnings("error", "provider=")  # a search path that is not there
        try:
            return hydra.compose_config(config_name, overrides, run_mode=RunMode.RUN, with_log_configuration=False)
        except (HydraException, OmegaConfBaseException, ValueError, UserWarning, MarkedYAMLError) as error:
            raise ConfigError(explained(error, hydra, overrides)) from error


def described_options(group: str) -> dict[str, str]:
    """Every option of a config group with the first comment of its file."""
    described: dict[str, str] = {}
    for folder in (CONFIGS, *config_folders()):
        for path in sorted((folder / group).rglob("*.yaml")):
            comments = [line for line in path.read_text(encoding="utf-8").splitlines() if re.match(r"# (?!@)", line)]
            option = path.relative_to(folder / group).with_suffix("").as_posix()
            described.setdefault(option, comments[0][2:] if comments else "")
    return described
