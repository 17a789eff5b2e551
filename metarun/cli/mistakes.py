"""What Hydra finds wrong, in one line of ours."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from hydra._internal.hydra import Hydra
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import OmegaConf
from yaml import MarkedYAMLError

from metarun.cli.grammar import parsed
from metarun.config.errors import did_you_mean, instead


def options(hydra: Hydra, group: str) -> list[str]:
    """Every option of a config group, those of its folders too: `maml/omniglot_5w1s`."""
    loader = hydra.config_loader
    here = loader.get_group_options(group)
    below = [
        f"{folder}/{option}" for folder in loader.list_groups(group) for option in options(hydra, f"{group}/{folder}")
    ]
    return sorted({*here, *below})


def explained(error: Exception, hydra: Hydra, overrides: list[str]) -> str:
    """What Hydra found wrong, in a line of ours; its own first line where we know no better."""
    text = str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = str(error.missing_cfg_file).partition("/")
        if found := options(hydra, group):
            return _unknown_option(group, option, found)
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem_mark.name}, line {error.problem_mark.line + 1}: {error.problem}"
    if match := re.search(r"[Cc]ould not override '([^']+)'", text):
        return _unknown_key(match[1], _keys(hydra, overrides))
    if match := re.match(r"provider=(\S+).* path=(.+) is not available", text):
        return f"{match[1]} is {match[2]}: there is no such folder"
    for override in parsed(overrides, hydra):
        group = override.key_or_group
        if not isinstance(override.value(), str | list) and (found := options(hydra, group)):
            return _unknown_option(group, override.get_value_string(), found)
    return text.splitlines()[0]


def _unknown_option(group: str, option: str, known: list[str]) -> str:
    return f"{group} is {option!r}: choose from {', '.join(known)}{did_you_mean(option, known)}"


def _unknown_key(key: str, known: list[str]) -> str:
    """Suggests the same word elsewhere, or a like word at the same place, or says what is at that place."""
    parent, _, word = key.rpartition(".")
    elsewhere = [other for other in known if other.endswith(f".{word}")]
    beside = [other.rpartition(".")[2] for other in known if other.rpartition(".")[0] == parent]
    if elsewhere:
        hint = f" (did you mean {' or '.join(elsewhere)}?)"
    elif parent and beside:
        hint = instead(word, [other for other in beside if other != "name"])
    else:
        hint = did_you_mean(key, known)
    return f"{key}: no such setting{hint}"


def _keys(hydra: Hydra, overrides: list[str]) -> list[str]:
    """Every group and every dotted key of what these overrides choose, whatever values they set."""
    groups = hydra.config_loader.list_groups("")
    choices = [text for text in overrides if text.partition("=")[0] in groups]
    try:
        config = hydra.compose_config("config", choices, run_mode=RunMode.RUN, with_log_configuration=False)
    except HydraException:
        config = hydra.compose_config("config", [], run_mode=RunMode.RUN, with_log_configuration=False)

    def below(values: Mapping[Any, Any], prefix: str) -> Iterator[str]:
        for key, value in values.items():
            yield f"{prefix}{key}"
            if isinstance(value, Mapping):
                yield from below(value, f"{prefix}{key}.")

    values = OmegaConf.to_container(config)
    assert isinstance(values, dict)
    return ["experiment", *below({key: value for key, value in values.items() if key != "hydra"}, "")]
