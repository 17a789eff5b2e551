"""From the command line to checked settings: Hydra composes, we explain what is wrong. Never imports torch."""

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from metarun.registry import GROUPS, check
from metarun.settings import ConfigError, EvalSettings, Settings, convert, convert_fields, did_you_mean

HERE = Path(__file__).resolve().parent
CONFIGS = next(folder for folder in (HERE / "configs", HERE.parent / "configs") if folder.is_dir())
WHERE = ("data_dir", "logger")  # where things are, not what is computed: no part of a run's identity


def load_settings(values: Mapping[str, Any]) -> Settings:
    """Settings from a composed configuration. Raises ConfigError that lists every problem in it."""
    problems: list[str] = []
    settings = convert(values, Settings, "", problems)
    for group in GROUPS:
        if isinstance(values.get(group), Mapping):
            check(group, values[group], problems)
    if not problems:
        _check_meta_test(settings, problems)
    if problems:
        raise ConfigError("\n".join(sorted(set(problems))))
    checked = {group: {"name": values[group]["name"], **check(group, values[group], [])} for group in GROUPS}
    return Settings(**{**vars(settings), **checked})


def _check_meta_test(settings: Settings, problems: list[str]) -> None:
    hints = get_type_hints(EvalSettings, include_extras=True)
    variables = {field.name: hints[field.name] for field in fields(EvalSettings) if field.name != "variants"}
    check("algo", {**settings.algo, **settings.eval.algo}, problems, "eval.algo")
    for name, changes in settings.eval.variants.items():
        key = f"eval.variants.{name}"
        declared = {setting: kind for setting, kind in variables.items() if setting in changes}
        unknown = {setting: did_you_mean(setting, variables) for setting in changes.keys() - variables.keys()}
        problems += [f"{key}.{setting}: no such setting{hint}" for setting, hint in unknown.items()]
        convert_fields({setting: changes[setting] for setting in declared}, declared, key, problems)
        check(
            "algo",
            {**settings.algo, **settings.eval.algo, **changes.get("algo", {})},
            problems,
            f"{key}.algo",
        )


def plain(config: DictConfig) -> dict[str, Any]:
    """The job's part of a composed configuration, resolved. Raises ConfigError."""
    try:
        values = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0]) from error
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items() if key != "hydra"}


def run_name(*, _root_: DictConfig) -> str:
    """Folder of a run: what it is, in words, and a hash of everything that its numbers depend on."""
    choices = _root_.hydra.runtime.choices
    values = plain(OmegaConf.masked_copy(_root_, [str(key) for key in _root_ if key not in ("hydra", *WHERE)]))
    values["dataset"].pop("path", None)
    digest = hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:8]
    return f"{choices.algo}-{choices.dataset}-{values['ways']}w{values['shots']}s/seed{values['seed']}-{digest}"


OmegaConf.register_new_resolver("run_name", run_name, replace=True)


def compose(overrides: list[str], config_dir: str | None = None, config_name: str = "config") -> DictConfig:
    """What Hydra composes for one job, with its own node. Raises ConfigError in place of Hydra's exceptions."""
    search_path = create_config_search_path(str(CONFIGS))
    if config_dir is not None:
        search_path.append("command-line", f"file://{Path(config_dir).absolute()}")
    GlobalHydra.instance().clear()
    hydra = Hydra.create_main_hydra2("metarun", search_path)
    try:
        return hydra.compose_config(config_name, overrides, run_mode=RunMode.RUN, with_log_configuration=False)
    except HydraException as error:
        raise ConfigError(_explained(error, hydra)) from error
    finally:
        GlobalHydra.instance().clear()


def jobs(overrides: list[str]) -> Iterator[list[str]]:
    """The overrides of every job of a sweep; for open-ended sweeps (an interval), of one example."""
    alternatives = []
    for override in OverridesParser.create().parse_overrides(overrides):
        key = override.get_key_element()
        if override.is_discrete_sweep():
            alternatives.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        elif override.is_sweep_override():
            alternatives.append([f"{key}={override.value().start}"])  # type: ignore[union-attr]
        else:
            alternatives.append([override.input_line or ""])
    return (list(job) for job in itertools.product(*alternatives))


def options(hydra: Hydra, group: str) -> list[str]:
    """Every option of a config group, those of its folders too: `maml/omniglot_5w1s`."""
    loader = hydra.config_loader
    here = loader.get_group_options(group)
    below = [
        f"{folder}/{option}" for folder in loader.list_groups(group) for option in options(hydra, f"{group}/{folder}")
    ]
    return sorted({*here, *below})


def described_options(group: str) -> Iterator[tuple[str, str]]:
    """Every option of a config group with the first comment of its file."""
    for path in sorted((CONFIGS / group).rglob("*.yaml")):
        comments = [line for line in path.read_text(encoding="utf-8").splitlines() if re.match(r"# (?!@)", line)]
        yield (
            path.relative_to(CONFIGS / group).with_suffix("").as_posix(),
            comments[0][2:] if comments else "",
        )


def _explained(error: HydraException, hydra: Hydra) -> str:
    text = str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = str(error.missing_cfg_file).partition("/")
        found = options(hydra, group)
        if found:
            return f"{group} is {option!r}: choose from {', '.join(found)}{did_you_mean(option, found)}"
    if match := re.search(r"[Cc]ould not override '([^']+)'", text):
        key = match[1]
        known = _keys(hydra)
        leaves = [other for other in known if other.endswith(f".{key}")]
        hint = f" (did you mean {leaves[0]}?)" if leaves else did_you_mean(key, known)
        return f"{key}: no such setting{hint}"
    return text.splitlines()[0]


def _keys(hydra: Hydra) -> list[str]:
    """Every group and every dotted key of the default configuration."""
    config = hydra.compose_config("config", [], run_mode=RunMode.RUN, with_log_configuration=False)

    def below(values: Mapping[str, Any], prefix: str) -> Iterator[str]:
        for key, value in values.items():
            yield prefix + key
            if isinstance(value, Mapping):
                yield from below(value, f"{prefix}{key}.")

    return ["experiment", *below(plain(config), "")]
