"""From `algo=NAME` and overrides to the generic checks of that component."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from metarun.cli.compose import compose
from metarun.cli.plain import NONE
from metarun.config.errors import ConfigError, instead
from metarun.config.load import load_settings, resolve
from metarun.config.registry import declaration

if TYPE_CHECKING:
    from metarun.analysis.problems import Check

GROUPS = ("algo", "dataset", "backbone")
SHORT = (NONE, "trainer.tasks_per_step=2", "eval.tasks=10", "eval.val_tasks=4", "device=cpu")
GLYPHS = (
    "dataset=glyphs",
    "dataset.classes_train=20",
    "dataset.classes_val=10",
    "dataset.classes_test=10",
    "dataset.drawings=10",
)
SINUSOID = ("dataset=sinusoid", "backbone=mlp")  # for methods that learn regression and no classification
BANDIT = ("dataset=bandit", "shots=2", "queries=3")  # for methods that act


def find_checks(component: str, overrides: Sequence[str] = (), config_dir: str | None = None) -> list["Check"]:
    """List the checks of a component, for example "algo=maml", with other overrides. Raises ConfigError."""
    group, _, name = component.partition("=")
    if group not in GROUPS or not name:
        hint = "" if group in GROUPS else instead(group, GROUPS)
        raise ConfigError(f"{component} cannot be checked{hint}: give a group and a name, for example algo=maml")
    where: tuple[str, ...] = () if group == "dataset" else GLYPHS
    if group == "algo":
        kinds = declaration("algo", compose([component, NONE], config_dir).algo.name).traits.kinds
        if "classification" not in kinds:
            where = SINUSOID if "regression" in kinds else BANDIT
    config = compose([*where, component, *SHORT, *overrides], config_dir)
    small = ["backbone.filters=4"] if where == GLYPHS and isinstance(config.backbone.get("filters"), int) else []
    config = compose([*where, component, *SHORT, *small, *overrides], config_dir)
    settings = load_settings(resolve(config))
    from metarun.analysis import checks, data_checks, world_checks

    control = declaration("dataset", config.dataset.name).traits.kind == "control"
    lists = {
        "algo": checks.list_algorithm_checks,
        "dataset": world_checks.list_world_checks if control else data_checks.list_dataset_checks,
        "backbone": checks.list_backbone_checks,
    }
    return lists[group](settings)
