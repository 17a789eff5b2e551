"""Every method learns to tell new glyphs apart: something in seconds, and in minutes more than pixels tell (slow)."""

from pathlib import Path
from typing import Any

import pytest
import torch

from metarun.cli.compose import change, compose
from metarun.cli.hydra_app import CONFIGS
from metarun.config.load import load_settings, resolve
from metarun.engine.build import Experiment
from metarun.engine.evaluate import Model, Scores, draw_fixed_tasks
from metarun.runs.folder import RunFolder
from metarun.runs.result import Row
from metarun.runs.run import run
from tests.support.tiny import nearest_by_pixels

OTHERS = {"nil", "maml_rl", "rl2", "rule"}  # which tests what others train, and which act: tests/runs/test_control.py
METHODS = sorted({path.stem for path in (CONFIGS / "algo").glob("*.yaml")} - OTHERS)
SETTINGS: dict[str, tuple[str, ...]] = {  # where they differ from those in configs/
    "alpha_tim": ("algo.steps=5", "algo.lr=0.01"),  # instead of 1000, through each of which training goes
    "anil": ("algo.inner_lr=0.4",),
    "baseline": ("backbone=conv4", "backbone.filters=32"),
    "baselinepp": ("backbone=conv4", "backbone.filters=32"),
    "cavia": ("backbone=conv4", "backbone.filters=32", "trainer.steps=240"),
    "imaml": (  # cheaper than the paper's operator, as in experiment=imaml/omniglot_5w1s
        "algo.inner_lr=0.2",
        "algo.inner_steps=8",
        "algo.proximal=0",
        "algo.shift=1",
        "algo.damping=12",
        "algo.cg_steps=2",
        "trainer.steps=120",
    ),
    "mamlpp": ("trainer.steps=80",),
    "matchingnet": ("backbone=conv4", "backbone.filters=32"),
    "metalstm": ("trainer.execution=loop",),  # memory
    "metanet": ("backbone=conv4", "backbone.filters=32"),
    "r2d2": ("backbone=r2d2", "backbone.filters=[32,64,128,128]", "trainer.steps=200"),
    "relationnet": ("backbone.filters=32",),
    "reptile": (
        "backbone=conv4_flat",
        "trainer.steps=250",
        "trainer.tasks_per_step=4",
        "algo.inner_lr=3e-3",
        "++eval.algo.inner_steps=10",
        "shots=10",  # in training
        "eval.shots=1",
    ),
    "siamese": ("backbone=conv4", "backbone.filters=32"),
}
COMMON = (
    "dataset=glyphs",
    "experiment=null",
    "device=cpu",
    "trainer.workers=1",
    "eval.val_tasks=100",
    "eval.tasks=200",
)
SHORT = (  # few steps, so large ones
    "dataset.classes_train=100",
    "trainer.steps=40",
    "trainer.tasks_per_step=4",
    "trainer.eval_every=40",
    "optimizer.lr=5e-3",
    "eval.val_tasks=20",
    "eval.tasks=100",
)
READS_PIXELS = (
    "backbone=mlp",
    "backbone.hidden=[]",
    "backbone.batch_norm=false",
    "dataset.image_size=10",
    "ways=2",
    "trainer.tasks_per_step=32",
)
# In seconds these learn no more than which labels are left: tests/core/test_sequences.py has more.
READS_LABELS = (*READS_PIXELS, "algo.hidden=64", "queries=4", "trainer.steps=150")
READERS = ("lstm", "mann", "snail")  # which take hours to tell more than pixels do
SETTINGS_SHORT: dict[str, tuple[str, ...]] = {
    "bmaml": ("algo.inner_lr=0.3", "algo.particles=2", "trainer.steps=100", "optimizer.lr=1e-2"),
    "icl": (*READS_PIXELS, "algo.layers=1", "queries=4", "trainer.steps=150", "optimizer.lr=3e-3"),
    "imaml": ("backbone=conv4_flat",),
    "lstm": READS_LABELS,
    "mann": READS_LABELS,
    "metalstm": ("algo.hidden=4",),
    "reptile": ("optimizer.lr=1",),
    "snail": (
        *READS_PIXELS,
        "algo.length=3",
        "algo.filters=16",
        "algo.attention=[[16,16],[16,16]]",
        "queries=2",
        "trainer.steps=200",
        "optimizer.lr=3e-3",
    ),
}


def configured(name: str, *overrides: str) -> dict[str, Any]:
    return resolve(compose([f"algo={name}", *COMMON, *SETTINGS.get(name, ()), *overrides]))


def trained(values: dict[str, Any], folder: RunFolder) -> Row:
    """The result of its test, 1-shot."""
    run(load_settings(values), folder, values, {})
    result = folder.result()
    assert result is not None
    row = result.rows["test"]
    assert (row.ways, row.shots) == (values["ways"], 1)
    return row


def untrained(experiment: Experiment) -> Scores:
    """The same test, of the weights that training starts from."""
    theta, row = experiment.draw_theta(), experiment.plan_rows()["test"]
    return experiment.build_tester(row, "test").score(
        [Model(theta, experiment.measure_statistics(theta))], row.tasks, "vmap"
    )


@pytest.mark.integration
@pytest.mark.parametrize("name", METHODS)
def test_a_short_training_of_a_small_network_makes_it_better(place: Path, name: str) -> None:
    values = configured(name, *SHORT, *SETTINGS_SHORT.get(name, ()))
    if filters := values["backbone"].get("filters"):
        values = change(values, [f"backbone.filters={[16] * len(filters) if isinstance(filters, list) else 16}"])
    after = trained(values, RunFolder(place / "run"))
    before = untrained(Experiment.build(load_settings(values)))
    assert after.task_hash == before.task_hash
    start, end = before.summarise()["accuracy"], after.to_json()["accuracy"]
    assert end["mean"] - end["ci95"] > start["mean"] + start["ci95"]
    assert end["mean"] - end["ci95"] > 1 / values["ways"]  # chance


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in METHODS if name not in (*READERS, "ml3")])  # new networks per task
def test_a_training_tells_more_than_pixels_do(place: Path, name: str) -> None:
    values = configured(name)
    accuracy = trained(values, RunFolder(place / "run")).to_json()["accuracy"]
    experiment = Experiment.build(load_settings(values))
    test = experiment.plan_rows()["test"]
    tasks = draw_fixed_tasks(experiment.build_tester(test, "test").source, test.tasks, test.seed, "test")
    by_pixels = torch.cat([nearest_by_pixels(block) for block in tasks]).mean()
    assert accuracy["mean"] - accuracy["ci95"] > by_pixels
