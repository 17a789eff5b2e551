"""Every file under configs/ composes, passes the check, builds, and takes a step and a test; also those in folders.

The grid of experiments on the published tables is in test_experiments.py.
"""

import dataclasses
import importlib.util
import math
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from metarun.cli.compose import change, compose
from metarun.cli.hydra_app import CONFIGS
from metarun.config.errors import ConfigError
from metarun.config.load import OWN, load_settings, resolve
from metarun.config.registry import GROUPS, declaration, known
from metarun.datasets import texts
from metarun.datasets.storage import known_sets
from metarun.runs.folder import RunFolder
from metarun.runs.run import run
from tests.support.tiny_assays import write_assays
from tests.support.tiny_pictures import write_cifar, write_listed
from tests.support.tiny_ratings import write_ratings
from tests.support.tiny_tables import write_own
from tests.support.tiny_texts import write_texts

ALL = sorted(path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.rglob("*.yaml"))
FILES = [file for file in ALL if not file.startswith("probe/")]  # those are no part of a run: tests/probes
OPTIONS = [file.replace("/", "=", 1) for file in FILES if "/" in file]  # "algo=maml", "experiment=maml/sinusoid"
REAL = {"omniglot": "omniglot", "miniimagenet": "mini-imagenet"}  # dataset -> its folder in METARUN_DATA
EXPERIMENTS = [file.removeprefix("experiment/") for file in FILES if file.startswith("experiment/")]
SAME_CODE = [  # experiments that only change values of another one of their method: built by test_experiments.py
    f"experiment={name}"
    for name in EXPERIMENTS
    if (method := name.partition("/")[0])
    and re.search(rf"/({'|'.join((*REAL, 'bandit', 'tabular'))})_", name)
    and (
        f"- /experiment/{method}/" in Path(CONFIGS, "experiment", f"{name}.yaml").read_text("utf-8")
        or (method != "maml" and "/miniimagenet_" in name and f"{method}/omniglot_5w1s" in EXPERIMENTS)
    )
]
ACTING = [  # which need one another: tests/runs/test_control.py runs them
    *(f"algo={name}" for name in known("algo") if "control" in declaration("algo", name).traits.kinds),
    *(f"dataset={name}" for name in known("dataset") if declaration("dataset", name).traits.kind == "control"),
]
TOGETHER = {  # what an option needs beside it
    "backbone=ngram": "dataset=clinc150",
    **{f"encoder={name}": "dataset=clinc150" for name in ("minilm", "wordllama", "transformers")},
    **{f"encoder={name}": "dataset=folder" for name in ("efficientnet_lite0", "timm", "open_clip")},
    "encoder=morgan": "dataset=fs_mol",
}
ALONE = (
    *(
        f"encoder={name}" for name in ("morgan", "torchvision", "timm", "open_clip", "transformers")
    ),  # want molecules, or weights
    "dataset=emnist",  # has no training classes: test_experiments.py
)
PACKAGES = {
    "logger=tensorboard": "tensorboard",
    "logger=wandb": "wandb",
    **{
        f"encoder={name}": needs[0] for name in known("encoder") if (needs := declaration("encoder", name).traits.needs)
    },
}
SMALL: dict[str, Any] = {
    "trainer.steps": 1,
    "trainer.tasks_per_step": 2,
    "trainer.log_every": 1,
    "trainer.eval_every": 1,
    "eval.tasks": 2,
    "eval.val_tasks": 2,
    "device": "cpu",
}
SMALL_PARTS = {  # of what has them
    "algo.steps": 10,
    "backbone.filters": 4,
    "backbone.kernels": [5, 3, 2, 2],
    "backbone.units": 8,
    "backbone.buckets": 64,
    "backbone.features": 8,
    "dataset.classes_train": 20,
    "dataset.classes_val": 10,
    "dataset.classes_test": 10,
}


@cache
def composed(*overrides: str) -> DictConfig:
    return compose(list(overrides))


def test_the_whole_tree_is_walked() -> None:
    groups = {option.partition("=")[0] for option in OPTIONS}
    assert groups == {*GROUPS, "trainer", "eval", "experiment"}
    assert [option for option in OPTIONS if "experiment=" in option and "/" in option]
    assert [file for file in FILES if "/" not in file] == ["config"]


@pytest.mark.parametrize("option", OPTIONS)
def test_a_file_composes_and_passes_the_check(place: Path, option: str) -> None:
    group, _, name = option.partition("=")
    config = composed(option)
    if option in PACKAGES and importlib.util.find_spec(PACKAGES[option]) is None:
        with pytest.raises(ConfigError, match="needs a package"):
            load_settings(resolve(config))
    else:
        load_settings(resolve(config))
    assert config.hydra.runtime.choices[group] == name
    assert config.hydra.run.dir.startswith("outputs/")


@pytest.mark.integration
@pytest.mark.parametrize("option", [option for option in OPTIONS if option not in (*SAME_CODE, *ACTING, *ALONE)])
def test_a_file_takes_a_step_and_a_test(
    data_folder: str | None, place: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    if option in PACKAGES:
        pytest.importorskip(PACKAGES[option])
    monkeypatch.setenv("WANDB_MODE", "offline")
    values = shrunk(resolve(composed(option, *([TOGETHER[option]] if option in TOGETHER else []))))
    data = values["dataset"].get("collection", values["dataset"]["name"])
    if data == "cheetah":
        pytest.importorskip("mujoco")
    if data in REAL:
        if data_folder is None or not Path(data_folder, REAL[data]).is_dir():
            pytest.skip(f"{data} is real data: set METARUN_DATA to the folder that has it")
        values["data_dir"] = data_folder
    elif data in (*known_sets.KNOWN_SETS, *texts.CORPORA, *OWN, "fs_mol", "movielens"):
        values["dataset"]["path"] = str(stand_in(data, place / "data", monkeypatch))
    folder = RunFolder(place / "run")
    run(load_settings(values), folder, values, {})

    result = folder.result()
    assert result is not None
    assert result.training.steps == 1
    assert {"test", *values["eval"]["variants"]} <= result.rows.keys()
    for name, row in result.rows.items():
        mean = result.estimate(name).mean
        assert row.tasks == 2
        assert isinstance(mean, float)
        assert math.isfinite(mean)


def stand_in(data: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small set in the form of the one named."""
    if data in texts.CORPORA:
        write_texts(root, data, 10, monkeypatch)
    elif data == "fs_mol":
        write_assays(root, times=11)
    elif data == "movielens":
        write_ratings(root)
    elif data == "folder":
        write_listed(root, "cifar_fs", per_class=6)
    elif data in ("cifar_fs", "fc100"):
        write_cifar(root, per_class=6)
        small = dataclasses.replace(known_sets.KNOWN_SETS[data], per_class=6)
        monkeypatch.setitem(known_sets.KNOWN_SETS, data, small)
    elif data in OWN:
        return write_own(data, root)
    else:
        write_listed(root, data, per_class=6)
    return root


def shrunk(values: dict[str, Any]) -> dict[str, Any]:
    """The same configuration with sizes that take a moment."""
    sizes = dict(SMALL)
    for key, size in SMALL_PARTS.items():
        group, name = key.split(".")
        if name in values[group]:
            now = values[group][name]
            sizes[key] = [size] * len(now) if isinstance(now, list) and isinstance(size, int) else size
    counted = [name for name, row in values["eval"]["variants"].items() if "tasks" in row]
    sizes |= {f"eval.variants.{name}.tasks": SMALL["eval.tasks"] for name in counted}
    return change(values, [f"{key}={size}" for key, size in sizes.items()])
