"""From the command line to checked settings: Hydra composes, we explain what is wrong. Never imports torch."""

import hashlib
import importlib.util
import itertools
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError

from metarun.errors import ConfigError
from metarun.registry import GROUPS, check, config_folders, declaration
from metarun.settings import EvalSettings, Settings, at_meta_test, convert, convert_fields, did_you_mean, instead

HERE = Path(__file__).resolve().parent
CONFIGS = next(folder for folder in (HERE / "configs", HERE.parent / "configs") if folder.is_dir())
WHERE = ("data_dir", "logger")  # where things are, not what is computed: no part of a run's identity
ONCE = ("val_tasks", "checkpoint", "variants")  # settings of eval that its variants share


class PackagesConfigs(SearchPathPlugin):
    """The YAML files of packages that add components, wherever Hydra composes; of two of one name ours counts."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in config_folders():
            search_path.append("metarun-packages", f"file://{folder}")


Plugins.instance().register(PackagesConfigs)


def load_settings(values: Mapping[str, Any]) -> Settings:
    """Settings from a composed configuration. Raises ConfigError that lists every problem in it."""
    problems: list[str] = []
    settings = convert(values, Settings, "", problems)
    checked = {}
    for group in GROUPS:
        if isinstance(values.get(group), Mapping):
            checked[group] = {"name": values[group].get("name"), **check(group, values[group], problems)}
    if not problems:
        _check_logger(settings.logger["name"], problems)
        meta_test = replace(settings.eval, variants=_meta_test_variants(settings, problems))
        settings = replace(settings, eval=meta_test, **checked)
    if problems:
        raise ConfigError("\n".join(sorted(set(problems))))
    return settings


def _check_logger(name: str, problems: list[str]) -> None:
    package = declaration("logger", name).constants.get("needs")
    if package and importlib.util.find_spec(package) is None:
        problems.append(f"logger={name} needs a package that is not there: pip install 'metarun[{name}]'")


def _meta_test_variants(settings: Settings, problems: list[str]) -> dict[str, dict[str, Any]]:
    """The variants with their declared types; also checks `eval.algo`, theirs and the common one."""
    hints = get_type_hints(EvalSettings, include_extras=True)
    variables = {field.name: hints[field.name] for field in fields(EvalSettings) if field.name not in ONCE}
    common = at_meta_test(settings.algo, settings.eval.algo)
    check("algo", common, problems, "eval.algo")
    converted = {}
    for name, changes in settings.eval.variants.items():
        key = f"eval.variants.{name}"
        declared = {setting: kind for setting, kind in variables.items() if setting in changes}
        unknown = {setting: instead(setting, variables) for setting in changes.keys() - variables.keys()}
        problems += [f"{key}.{setting}: no such setting{hint}" for setting, hint in unknown.items()]
        known = {setting: changes[setting] for setting in declared}
        converted[name] = convert_fields(known, declared, key, problems)
        check("algo", at_meta_test(common, changes.get("algo", {})), problems, f"{key}.algo")
    return converted


def plain(config: DictConfig) -> dict[str, Any]:
    """The job's part of a composed configuration, resolved. Raises ConfigError."""
    try:
        values = {str(key): config[key] for key in config if key != "hydra"}
        return {
            key: OmegaConf.to_container(v, resolve=True) if OmegaConf.is_config(v) else v for key, v in values.items()
        }
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {str(error).splitlines()[0]}") from error


def changed(values: Mapping[str, Any], overrides: list[str]) -> dict[str, Any]:
    """A plain configuration with some values replaced; keys that are new are left to `load_settings`."""
    config = OmegaConf.create(dict(values))
    for override in parsed(overrides):
        if override.is_sweep_override():
            raise ConfigError(f"{override.input_line} is a list of values: one at a time")
        OmegaConf.update(config, override.key_or_group, override.value(), force_add=True)
    return plain(config)


def identity(values: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that a run's numbers depend on."""
    dataset = values["dataset"]
    where = {"placement"} if dataset.get("collection") == "folder" else {"placement", "path"}  # one's own path counts
    dataset = {key: value for key, value in dataset.items() if key not in where}
    return {key: value for key, value in values.items() if key not in WHERE} | {"dataset": dataset}


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
            raise ConfigError(_explained(error, hydra, overrides)) from error


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


def parsed(overrides: list[str], hydra: Hydra | None = None) -> list[Override]:
    """Overrides in Hydra's grammar. Raises ConfigError."""
    parser = OverridesParser.create(hydra.config_loader if hydra else None)
    found = []
    for text in overrides:
        try:
            found += parser.parse_overrides([text])
        except HydraException as error:
            shown = text.removeprefix("++")
            if "=" not in text:
                reason = "a setting is written name=value"
            elif any(text.count(a) != text.count(b) for a, b in ("[]", "{}", "()")):
                reason = "a bracket is open; in a shell quote the whole, as 'name={a: 1}'"
            else:
                reason = "quote special characters twice, as 'name=\"a = b\"'"
            raise ConfigError(f"{shown} cannot be read: {reason}") from error
    return found


def jobs(overrides: list[str], config_dir: str | None = None) -> Iterator[list[str]]:
    """The overrides of every job of a sweep; for open-ended sweeps (an interval), of one example."""
    alternatives = []
    with _hydra(config_dir) as hydra:
        asked = parsed(overrides, hydra)
    for override in asked:
        key = override.get_key_element()
        if override.is_discrete_sweep():
            alternatives.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        elif override.is_sweep_override():
            alternatives.append([f"{key}={override.value().start}"])  # type: ignore[union-attr]
        else:
            alternatives.append([override.input_line or ""])
    return (list(job) for job in itertools.product(*alternatives))


def sweep_folders(config: DictConfig) -> tuple[Path, Path | None]:
    """The folder of a sweep, and below it that of this job; None where it depends on the job's number."""
    root = Path(config.hydra.sweep.dir).absolute()
    try:
        return root, root / config.hydra.sweep.subdir
    except OmegaConfBaseException:
        return root, None


def is_open_ended(overrides: list[str]) -> bool:
    """Whether a sweeper chooses the values, as from an interval."""
    return any(override.is_sweep_override() and not override.is_discrete_sweep() for override in parsed(overrides))


def options(hydra: Hydra, group: str) -> list[str]:
    """Every option of a config group, those of its folders too: `maml/omniglot_5w1s`."""
    loader = hydra.config_loader
    here = loader.get_group_options(group)
    below = [
        f"{folder}/{option}" for folder in loader.list_groups(group) for option in options(hydra, f"{group}/{folder}")
    ]
    return sorted({*here, *below})


def described_options(group: str) -> dict[str, str]:
    """Every option of a config group with the first comment of its file."""
    described: dict[str, str] = {}
    for folder in (CONFIGS, *config_folders()):
        for path in sorted((folder / group).rglob("*.yaml")):
            comments = [line for line in path.read_text(encoding="utf-8").splitlines() if re.match(r"# (?!@)", line)]
            option = path.relative_to(folder / group).with_suffix("").as_posix()
            described.setdefault(option, comments[0][2:] if comments else "")
    return described


def _explained(error: Exception, hydra: Hydra, overrides: list[str]) -> str:
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
