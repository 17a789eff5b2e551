"""What a person would try first, without meta-training: rows beside a result, on the first of the same tasks."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.config.errors import ConfigError
from metarun.config.registry import declaration
from metarun.config.schema import EvalSettings, apply_data_changes
from metarun.config.traits import DatasetTraits
from metarun.core.objectives import class_means, one_hot
from metarun.core.types import Dataset, Examples, TaskShape, TaskSource
from metarun.datasets.encoded import Encoded, number_examples, replace_examples
from metarun.datasets.grouped import Grouped
from metarun.engine.build import Experiment, build_algorithm, build_encoder, find_tasks
from metarun.engine.evaluate import Tester, draw_fixed_tasks

Predict = Callable[[Examples, Tensor, int], Tensor]  # support, x [n, *input], classes -> logits [n, N]
NEEDS = {"tanimoto": "rdkit", "forest": "sklearn"}  # packages of the extra `baselines`
FINGERPRINT = {"name": "morgan", "radius": 2, "bits": 2048, "unit_length": False}  # as FS-Mol's
NEIGHBOURS = 4  # of a molecule: the least that FS-Mol's authors try
TREES = 100
BUCKETS = 2**15  # of hashed n-grams


def list_baselines(experiment: Experiment, row: EvalSettings) -> tuple[str, ...]:
    """The names of the baselines for the data that a row is tested on."""
    if experiment.source.spec.kind != "classification" or row.shots == 0:
        return ()
    values = apply_data_changes(experiment.settings.dataset, row.dataset)
    traits: DatasetTraits = declaration("dataset", values["name"]).traits
    return traits.baselines


@dataclass(frozen=True)
class Baselines:
    """Builds the baselines of a row of the test."""

    experiment: Experiment
    row: EvalSettings

    def build_tester(self, name: str) -> Tester:
        """Raises ConfigError if its package is missing, or it cannot read an example."""
        if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None:
            raise ConfigError(f"it needs the package {NEEDS[name]}: pip install 'metarun[baselines]'")
        source, predict = self.find(name)

        def rule(name: str, support: Examples, x: Tensor) -> Tensor:
            return predict(support, x, source.spec.output_size)

        row = replace(self.row, algo={"name": "rule", "rule": name, "trials": 1})
        algo = build_algorithm(row.algo, self.experiment.backbone, source.spec._replace(rule=rule))
        return Tester(algo, self.experiment.backbone, source, row, "test", self.dataset)

    def find(self, name: str) -> tuple[TaskSource, Predict]:
        """The tasks as the baseline reads them, and how it predicts."""
        if name == "tf_idf":
            return self.tasks, weigh_ngrams(self.read_training_ngrams())
        if name == "pixels":
            return self.tasks, compare_means
        return self.fingerprints, compare_molecules if name == "tanimoto" else grow_forest

    @cached_property
    def dataset(self) -> Dataset:
        """The dataset without an encoder."""
        dataset, _ = self.experiment.find_dataset(self.row, "test")
        return dataset.dataset if isinstance(dataset, Encoded) else dataset

    @property
    def tasks(self) -> TaskSource:
        return find_tasks(self.dataset, self.row.split, self.row)

    def read_training_ngrams(self) -> Tensor:
        """The n-grams of the training texts, [texts, width]."""
        source: Any = self.dataset.tasks("train", TaskShape(1, 1, 1))
        rows: Tensor = source.table.examples[source.table.rows]
        return rows

    @cached_property
    def fingerprints(self) -> TaskSource:
        """The tasks with Morgan fingerprints, of these tasks' molecules alone. Raises ConfigError."""
        assert isinstance(self.dataset, Grouped)
        source = number_examples(self.tasks)
        tasks = draw_fixed_tasks(source, self.row.tasks, self.row.seed, "test")
        numbers = torch.cat([part.x.flatten() for block in tasks for part in block]).unique().cpu()
        molecules = self.dataset.contents().read()
        encoder = build_encoder(FINGERPRINT, self.experiment.device)
        found = encoder.encode([molecules[number] for number in numbers.tolist()])
        return replace_examples(self.tasks, found, numbers)


def compare_means(support: Examples, x: Tensor, classes: int) -> Tensor:
    """Minus the squared distances to the class means, of the numbers as they are. [n, *input] -> [n, N]."""
    means = class_means(support.x.flatten(1), support.y, classes)
    return -(torch.cdist(x.flatten(1), means) ** 2)


def weigh_ngrams(training: Tensor) -> Predict:
    """Compare means of TF-IDF vectors of length 1; log(texts / texts with the n-gram) is of the training texts.

    training: hashed n-grams [texts, width], each once in a row, 0 where a text has no more.
    """
    held = (training.flatten().long() % BUCKETS).bincount(minlength=BUCKETS)
    weights = ((1 + len(training)) / (1 + held)).log().clamp(min=0)

    def weigh(rows: Tensor) -> Tensor:
        places = rows.long() % BUCKETS
        found = torch.where(rows > 0, weights[places], 0.0)
        return F.normalize(found.new_zeros(len(rows), BUCKETS).scatter_(1, places, found))

    return lambda support, x, classes: compare_means(Examples(weigh(support.x), support.y), weigh(x), classes)


def compare_molecules(support: Examples, x: Tensor, classes: int) -> Tensor:
    """The Tanimoto similarities of the nearest molecules, added up by class. [n, bits] of 0 and 1 -> [n, N]."""
    shared = x @ support.x.T
    similarity = shared / (x.sum(1)[:, None] + support.x.sum(1) - shared).clamp(min=1)
    nearest, places = similarity.topk(min(NEIGHBOURS, len(support.y)))  # [n, k]
    return (nearest[..., None] * one_hot(support.y[places], classes)).sum(1)


def grow_forest(support: Examples, x: Tensor, classes: int) -> Tensor:
    """The class probabilities of a random forest with scikit-learn's settings. [n, bits] -> [n, N]."""
    from sklearn.ensemble import RandomForestClassifier

    forest = RandomForestClassifier(TREES, random_state=0).fit(support.x.cpu().numpy(), support.y.cpu().numpy())
    found = x.new_zeros(len(x), classes)
    found[:, torch.from_numpy(forest.classes_)] = torch.from_numpy(forest.predict_proba(x.cpu().numpy())).to(x)
    return found
