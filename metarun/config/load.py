"""From composed values to checked settings. Never imports torch."""

import importlib.util
import os
from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from typing import Any, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from metarun.config.errors import ConfigError, find_reason, instead
from metarun.config.registry import CONFIGS, GROUPS, check, config_folders, dataset_traits, declaration, known
from metarun.config.schema import EvalSettings, Settings, apply_data_changes, apply_test_changes
from metarun.config.validate import convert, convert_fields

WHERE = ("data_dir", "logger")  # where things are, not what is computed: no part of a run's identity
PATHS = (
    "data_dir",
    "backbone.weights",
    "dataset.path",
    "encoder.path",
    "eval.checkpoint",
    "init_from",
)  # of the user's
# Settings of eval that earlier runs do not have, with what they did
NEW: dict[str, Any] = {"dataset": {}, "split": "test", "dirichlet": None, "probes": [], "probe_tasks": 100}
ATTACK = ("attack_radius", "attack_step", "attack_steps")  # settings of trainer that earlier runs do not have
OWN = ("folder", "texts", "assays", "regression", "features")  # collections of a user's own data
PICTURES = "efficientnet_lite0"  # the encoder that is suggested for them
SIDE = 224  # pixels of pictures that are kept for an encoder whose network decides on the size that it reads
# How a network reads pictures: the name of a fact in its checkpoint -> that of a dataset's setting
FORM = {"size": "image_size"} | {name: name for name in ("channels", "resize", "filter", "ink", "mean", "std")}
# Settings of eval that its variants share
ONCE = ("val_tasks", "statistics_tasks", "checkpoint", "variants", "probes", "probe_tasks")


def load_settings(values: Mapping[str, Any]) -> Settings:
    """Check and convert a composed configuration. Raises ConfigError, which lists every problem in it."""
    problems: list[str] = []
    settings: Settings = convert(values, Settings, "", problems)
    checked: dict[str, Any] = {}
    for group in GROUPS:
        if isinstance(values.get(group), Mapping):
            checked[group] = {"name": values[group].get("name"), **check(group, values[group], problems)}
    if not problems:
        _check_packages(settings, problems)
        meta_test = replace(settings.eval, variants=_convert_variants(settings, problems))
        _check_task(replace(settings, eval=meta_test), problems)
        _check_precision(settings, problems)
        settings = replace(settings, eval=meta_test, **checked)
    if problems:
        raise ConfigError("\n".join(sorted(set(problems))))
    return settings


def _check_task(settings: Settings, problems: list[str]) -> None:
    """One class leaves nothing to tell apart. No shots are for control alone, where episodes may not count.

    A test that has the training's number, as it does unless it is set, is not told of twice.
    """
    kind = dataset_traits(settings.dataset).kind
    own = {"shots": settings.shots, "ways": settings.ways}
    asked = {"": own, "eval.": {"shots": settings.eval.shots, "ways": settings.eval.ways}}
    asked |= {f"eval.variants.{name}.": row for name, row in settings.eval.variants.items()}
    for prefix, row in asked.items():
        new = {name: row.get(name) for name in own if not prefix or row.get(name) != own[name]}
        if kind != "control" and new.get("shots") == 0:
            problems.append(f"{prefix}shots is 0: it must be at least 1")
        ways, least = new.get("ways"), 2 if kind == "classification" else 1
        if isinstance(ways, int) and ways < least:
            why = ", with one class any guess is right" if ways == 1 else ""
            problems.append(f"{prefix}ways is {ways}: it must be at least {least}{why}")


def _check_packages(settings: Settings, problems: list[str]) -> None:
    """A logger and an encoder may need packages that come with an extra of metarun's."""
    logger = settings.logger["name"]
    traits = declaration("logger", logger).traits
    if traits and importlib.util.find_spec(traits.needs) is None:
        problems.append(f"logger={logger} needs a package that is not there: pip install 'metarun[{logger}]'")
    if settings.encoder and (absent := find_absent(settings.encoder["name"])):
        traits = declaration("encoder", settings.encoder["name"]).traits
        problems.append(
            f"encoder={settings.encoder['name']} needs a package that is not there, {', '.join(absent)}: "
            f"pip install 'metarun[{traits.extra}]'"
        )


def suggest_encoder(settings: Settings) -> str | None:
    """Say that there is an encoder for a user's own pictures, if it is installed and none was chosen."""
    fits = settings.dataset.get("collection") == "folder" and settings.encoder is None
    if not fits or find_absent(PICTURES):
        return None
    return (
        f"your own pictures: encoder={PICTURES} starts from a network that knows pictures, and "
        f"metarun predict --encoder {PICTURES} SUPPORT QUERY needs no training"
    )


def find_absent(encoder: str) -> list[str]:
    """The packages that an encoder needs and that are not installed."""
    return [name for name in declaration("encoder", encoder).traits.needs if importlib.util.find_spec(name) is None]


def _check_precision(settings: Settings, problems: list[str]) -> None:
    """Under vmap PyTorch applies no autocast to convolutions, so that the label would be false."""
    if settings.trainer.precision == "bfloat16" and settings.trainer.execution == "vmap":
        problems.append(
            "trainer.precision is bfloat16 and trainer.execution is vmap: set trainer.execution=loop, "
            "within vmap PyTorch computes convolutions in float32"
        )


def _convert_variants(settings: Settings, problems: list[str]) -> dict[str, dict[str, Any]]:
    """Convert the variants to their declared types; check `algo` and `dataset` in them as well, and those of `eval`."""
    hints = get_type_hints(EvalSettings, include_extras=True)
    variables = {field.name: hints[field.name] for field in fields(EvalSettings) if field.name not in ONCE}
    common = apply_test_changes(settings.algo, settings.eval.algo)
    data = apply_data_changes(settings.dataset, settings.eval.dataset)
    check("algo", common, problems, "eval.algo")
    check("dataset", data, problems, "eval.dataset")
    converted = {}
    for name, changes in settings.eval.variants.items():
        key = f"eval.variants.{name}"
        declared = {setting: kind for setting, kind in variables.items() if setting in changes}
        unknown = {setting: instead(setting, variables) for setting in changes.keys() - variables.keys()}
        problems += [f"{key}.{setting}: no such setting{hint}" for setting, hint in unknown.items()]
        known = {setting: changes[setting] for setting in declared}
        converted[name] = convert_fields(known, declared, key, problems)
        check("algo", apply_test_changes(common, changes.get("algo", {})), problems, f"{key}.algo")
        check("dataset", apply_data_changes(data, changes.get("dataset", {})), problems, f"{key}.dataset")
    return converted


def resolve(config: DictConfig) -> dict[str, Any]:
    """Return the job's part of a composed configuration, resolved, complete and with absolute paths.

    Raises ConfigError.
    """
    try:
        values = {str(key): config[key] for key in config if key != "hydra"}
        if not values.get("encoder", True):  # encoder=none: then a run has the identity of those of earlier versions
            del values["encoder"]
        plain: dict[str, Any] = {
            key: OmegaConf.to_container(v, resolve=True) if OmegaConf.is_config(v) else v for key, v in values.items()
        }
        dataset, encoder = plain.get("dataset"), plain.get("encoder")
        if isinstance(dataset, dict) and isinstance(encoder, dict) and _leave_size(dataset) and _leave_size(encoder):
            plain["dataset"] = {**dataset, "image_size": SIDE}
        return make_absolute(complete_tests(plain))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {find_reason(error)}") from error


def _leave_size(settings: Mapping[str, Any]) -> bool:
    """Whether they have a size of pictures, and leave it open."""
    return "image_size" in settings and settings["image_size"] is None


def complete_tests(values: dict[str, Any]) -> dict[str, Any]:
    """Add, where a test names another method than the trained one, what that method's YAML file says of the rest."""
    test, trained = values.get("eval"), values.get("algo")
    if not isinstance(test, Mapping) or not isinstance(trained, Mapping):
        return values
    common = _complete(test.get("algo"), trained)
    variants = test.get("variants")
    if isinstance(variants, Mapping):
        before = common if isinstance(common, Mapping) and "name" in common else trained
        variants = {
            name: {**row, "algo": _complete(row["algo"], before)} if isinstance(row, Mapping) and "algo" in row else row
            for name, row in variants.items()
        }
    completed = {"algo": common, "variants": variants}
    return {**values, "eval": {**test, **{key: completed[key] for key in completed if key in test}}}


def _complete(changes: Any, before: Mapping[str, Any]) -> Any:
    """Changes with the other settings of the method that they name, if that is not the one before."""
    name = changes.get("name", before.get("name")) if isinstance(changes, Mapping) else before.get("name")
    if name == before.get("name") or name not in known("algo"):
        return changes
    own = read_option("algo", name)
    return {key: value for key, value in own.items() if key != "name"} | dict(changes)


def read_option(group: str, name: str) -> dict[str, Any]:
    """Read the settings in an option's YAML file, after those of the options that it starts from; its name alone where
    there is no such file.
    """
    files = (folder / group / f"{name}.yaml" for folder in (CONFIGS, *config_folders()))
    file = next((file for file in files if file.is_file()), None)
    found = OmegaConf.to_container(OmegaConf.load(file)) if file else {}
    values = {str(key): value for key, value in found.items()} if isinstance(found, dict) else {}
    for option in values.pop("defaults", []):
        values = {**read_option(group, option), **values} if isinstance(option, str) else values
    return values if "name" in values else {"name": name}


def keep_form(values: Mapping[str, Any], form: Mapping[str, Any], given: Collection[str]) -> dict[str, Any]:
    """A dataset's settings that read pictures in the form of a network's inputs, but for settings that are given."""
    read = {FORM[key]: value for key, value in form.items() if key in FORM and FORM[key] not in given}
    return {**values, **{key: value for key, value in read.items() if key in values}}


def make_absolute(values: Mapping[str, Any]) -> dict[str, Any]:
    """Make the user's paths absolute, so that they mean the same wherever a later command is given.

    Raises ConfigError for an empty one.
    """
    changed = dict(values)
    for path in PATHS:
        group, _, name = path.rpartition(".")
        place = changed.get(group) if group else changed
        value = place.get(name) if isinstance(place, Mapping) else None
        if value == "" and path != "data_dir":  # that of METARUN_DATA, where empty means unset
            raise ConfigError(f"{path} is empty, as of an unset variable of the shell: give a path, or null")
        if place and value and isinstance(value, str) and _is_path(path, value):
            absolute = {name: os.path.abspath(os.path.expanduser(value))}
            changed |= {group: {**place, **absolute}} if group else absolute
    return changed


def _is_path(setting: str, value: str) -> bool:
    """Whether a setting's text is a path: no address, and no name such as best, a checkpoint, or DEFAULT, weights."""
    named = setting in ("backbone.weights", "eval.checkpoint")
    return "://" not in value and (not named or value.endswith((".pt", ".pth", ".safetensors")))


def identity(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything that a run's numbers depend on."""
    dataset = values["dataset"]
    where = {"placement", "path"} if is_published(dataset) else {"placement"}
    dataset = {key: value for key, value in dataset.items() if key not in where}
    unset = ("init_from",) if values.get("init_from") is None else ()  # settings that earlier runs do not have
    test = {key: value for key, value in values.get("eval", {}).items() if (key, value) not in NEW.items()}
    training = values.get("trainer", {})
    if not training.get("attack_radius"):
        training = {key: value for key, value in training.items() if key not in ATTACK}
    kept = {key: value for key, value in values.items() if key not in {*WHERE, *unset}}
    return kept | {"dataset": dataset, "trainer": training, "eval": test}


def is_published(dataset: Mapping[str, Any]) -> bool:
    """Whether the data is the same wherever it lies, so that its path only says where; one's own path counts."""
    traits = declaration("dataset", dataset["name"]).traits
    return bool(traits and traits.published) and dataset.get("collection") not in OWN
