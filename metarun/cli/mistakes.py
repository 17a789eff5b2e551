"""Hydra's errors as one line that names the key or file, what was found and what is allowed."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import hydra
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf import OmegaConf
from yaml import MarkedYAMLError

from metarun.cli.grammar import show
from metarun.config.errors import ConfigError, did_you_mean, find_reason, instead, offer
from metarun.config.registry import LISTED

EXTRAS = {  # group -> option -> the extra of metarun's that has it
    "hydra/launcher": {"joblib": "joblib", "submitit_local": "submitit", "submitit_slurm": "submitit", "ray": "ray"},
    "hydra/sweeper": {"optuna": "optuna"},
}
PLUGINS = {
    "rq": "hydra-rq-launcher",
    "ray_aws": "hydra-ray-launcher",
    "ax": "hydra-ax-sweeper",
    "nevergrad": "hydra-nevergrad-sweeper",
    "colorlog": "hydra-colorlog",
}


def check_choice(override: Override, loader: ConfigLoader) -> None:
    """Raise ConfigError if an override gives a config group anything but one of its options."""
    group, value = override.key_or_group, override.value()
    if group == "hydra":
        raise ConfigError("hydra itself cannot be set: set what is in it, for example hydra.run.dir=FOLDER")
    if override.is_delete() or (group == "experiment" and value is None):
        return
    if not (loader.get_group_options(group) or loader.list_groups(group)):  # no group, but a key
        return
    if override.package is None and (override.is_add() or override.is_force_add()):  # with one it is a second choice
        raise ConfigError(f"{override.input_line}: {group} has an option already: write {group}=NAME to replace it")
    several = value if group == "experiment" and isinstance(value, list) and value else [value]
    for option in several:
        if not _is_option(loader, group, option):
            found = str(override.get_value_element_as_str())
            raise ConfigError(_refuse_option(group, found, list_options(loader, group)))


def _is_option(loader: ConfigLoader, group: str, option: Any) -> bool:
    """Whether a config group has the option; looks into its own folder alone, as each look costs Hydra milliseconds."""
    if not isinstance(option, str):
        return False
    path = PurePosixPath(group, option)
    plain = str(path) == f"{group}/{option}" and ".." not in path.parts
    return plain and path.name in loader.get_group_options(str(path.parent))


def explain(error: Exception, loader: ConfigLoader, overrides: Sequence[str]) -> str:
    """What Hydra found wrong while it composed `overrides`; its own first line if nothing better is known."""
    text = str(error) or type(error).__name__
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = str(error.missing_cfg_file).partition("/")
        if not option:
            return f"there is no YAML file {group}.yaml that could be used in place of metarun's own"
        if known := list_options(loader, group):
            return _refuse_option(group, option, known)
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem_mark.name}, line {error.problem_mark.line + 1}: {error.problem}"
    if match := re.search(r"(?:[Cc]ould not override|Invalid Defaults List override) '/?([^':]+)", text):
        return _refuse_key(match[1], _list_keys(loader, overrides))
    if match := re.match(r"provider=(\S+).* path=(.+) is not available", text):
        return f"{match[1]} is {match[2]}: there is no such folder"
    if match := re.match("Error merging override (.+)", text):
        return refuse_value(match[1])
    key = getattr(error, "full_key", None)
    return f"{key}: {find_reason(error)}" if key else find_reason(error)


def list_options(loader: ConfigLoader, group: str) -> list[str]:
    """Every option of a config group, also those in its folders: `maml/omniglot_5w1s`."""
    here = loader.get_group_options(group)
    folders = loader.list_groups(group)
    below = [f"{folder}/{option}" for folder in folders for option in list_options(loader, f"{group}/{folder}")]
    return sorted({*here, *below})


def refuse_value(override: str) -> str:
    return f"{show(override)}: a value of another kind is needed here"


def _refuse_option(group: str, option: str, known: list[str]) -> str:
    extras = EXTRAS.get(group, {})
    plugin = f"metarun[{extras[option]}]" if option in extras else PLUGINS.get(option)
    if group.startswith("hydra/") and plugin:
        return f"{group}={option} needs a package that is not there: pip install '{plugin}'"
    return f"{group} is {option!r}: {offer(option, sorted({*known, *extras}), group if group in LISTED else None)}"


def _refuse_key(key: str, known: list[str]) -> str:
    """Suggest the same word elsewhere or a similar word at the same place, or name what is at that place."""
    parent, _, word = key.rpartition(".")
    if key in known:
        return f"{key}: the value has a key that {key} does not take"
    elsewhere = [other for other in known if other.endswith(f".{word}")]
    beside = [other.rpartition(".")[2] for other in known if other.rpartition(".")[0] == parent]
    if elsewhere:
        hint = f" (did you mean {' or '.join(elsewhere)}?)"
    elif parent and beside:
        hint = instead(word, [other for other in beside if other != "name"])
    else:
        hint = did_you_mean(key, known)
    return f"{key}: no such setting{hint}"


def _list_keys(loader: ConfigLoader, overrides: Sequence[str]) -> list[str]:
    """Every group and every dotted key of the options that these overrides choose, whatever values they set."""
    groups = loader.list_groups("")
    choices = [text for text in overrides if text.partition("=")[0] in groups]
    try:
        config = hydra.compose("config", choices)
    except HydraException:
        config = hydra.compose("config")

    def below(values: Mapping[Any, Any], prefix: str) -> Iterator[str]:
        for key, value in values.items():
            yield f"{prefix}{key}"
            if isinstance(value, Mapping):
                yield from below(value, f"{prefix}{key}.")

    values = OmegaConf.to_container(config)
    assert isinstance(values, dict)
    return ["experiment", *below(values, "")]
