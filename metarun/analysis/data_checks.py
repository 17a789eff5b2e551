"""Generic checks of a dataset: what its tasks must fulfil. A check raises AssertionError with one line."""

import functools
import hashlib
import json
from collections.abc import Callable
from typing import Any, get_args

import torch
from torch import Tensor

from metarun.analysis.device_checks import GPU, check_draws
from metarun.analysis.problems import Check, require
from metarun.config.registry import declaration
from metarun.config.schema import Settings
from metarun.core.batch import unstack
from metarun.core.seeding import generator_for
from metarun.core.types import Dataset, Episode, Split, TaskShape
from metarun.datasets.preprocessing import read_preprocessing
from metarun.engine.build import build_dataset

ON_GPU = "tasks would be drawn on a GPU without waiting for it, and nothing of them left on the host"
TASKS = 40  # that are looked at in each split


def list_dataset_checks(settings: Settings) -> list[Check]:
    """The checks of the dataset that the settings choose. Prepares the data."""
    dataset = functools.cache(lambda: build_dataset(settings))
    shape = TaskShape(settings.ways, settings.shots, settings.queries)
    draw = functools.cache(lambda split: draw_tasks(dataset(), split, shape, seed=0))
    traits = declaration("dataset", settings.dataset["name"]).traits
    distinct = [
        Check("support and queries of a task share no example", lambda: check_disjoint(draw)),
        Check("no example of one split is in another", lambda: check_splits(draw)),
    ]
    return [
        Check("it can be prepared and described", lambda: check_description(dataset())),
        Check("tasks have the shapes and labels that are declared", lambda: check_tasks(dataset(), shape, draw)),
        Check("tasks follow from the generator alone", lambda: check_determinism(dataset(), shape, draw)),
        *([] if traits.duplicates else distinct),
        Check(ON_GPU, lambda: check_draws(build_dataset(settings, GPU), shape, traits.rules)),
    ]


def check_description(dataset: Dataset) -> None:
    dataset.prepare()
    require(bool(dataset.describe().strip()), "describe() says nothing")
    require(all(note.strip() and "\n" not in note for note in dataset.notes()), "a note is not one line")
    json.dumps(dataset.identity())
    read_preprocessing(json.loads(json.dumps(dataset.preprocessing())), torch.device("cpu"))


Draw = Callable[[Split], Episode]


def draw_tasks(dataset: Dataset, split: Split, shape: TaskShape, seed: int) -> Any:
    """An Episode, or a Trial of a world."""
    return dataset.tasks(split, shape).sample(TASKS, generator_for(seed, "check", split))


def check_tasks(dataset: Dataset, shape: TaskShape, draw: Draw) -> None:
    for split in get_args(Split):
        spec = dataset.tasks(split, shape).spec
        for part, (x, y) in zip(("support", "query"), draw(split)):
            require(
                tuple(x.shape[2:]) == spec.input_shape,
                f"{part}.x of {split} is {list(x.shape)}, inputs are {spec.input_shape}",
            )
            require(
                x.shape[:2] == y.shape[:2],
                f"{part} of {split} has {list(x.shape[:2])} inputs, {list(y.shape[:2])} labels",
            )
            require(bool(x.isfinite().all()), f"{part}.x of {split} is not finite")
            if spec.kind == "classification" and not spec.ragged:
                within = bool(((y >= 0) & (y < spec.output_size)).all())
                require(within, f"{part}.y of {split} has labels outside of 0..{spec.output_size - 1}")


def check_determinism(dataset: Dataset, shape: TaskShape, draw: Draw) -> None:
    for split in get_args(Split):
        state = torch.get_rng_state()
        again, other = (draw_tasks(dataset, split, shape, seed) for seed in (0, 1))
        require(torch.equal(torch.get_rng_state(), state), f"tasks of {split} change the global random generator")
        same = all(torch.equal(a, b) for one, two in zip(draw(split), again) for a, b in zip(one, two))
        require(same, f"one seed gives two sets of tasks in {split}")
        fixed = dataset.tasks(split, shape).spec.listed is not None
        require(fixed or not torch.equal(again.query.x, other.query.x), f"two seeds give the same tasks in {split}")


def fingerprint(x: Tensor) -> bytes:
    return hashlib.blake2b(x.contiguous().cpu().numpy().tobytes(), digest_size=16).digest()


def check_disjoint(draw: Draw) -> None:
    for split in get_args(Split):
        for number, task in enumerate(unstack(draw(split))):
            both = {fingerprint(x) for x in task.support.x} & {fingerprint(x) for x in task.query.x}
            require(not both, f"task {number} of {split} has the same example in support and queries (or a duplicate)")


def check_splits(draw: Draw) -> None:
    """Over many tasks: splits that share a class would show examples of one in the other."""
    seen = {split: {fingerprint(x) for part in draw(split) for x in part.x.flatten(0, 1)} for split in get_args(Split)}
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        both = len(seen[one] & seen[other])
        require(not both, f"{both} examples are in {one} and in {other}: splits must not share classes (or duplicates)")
