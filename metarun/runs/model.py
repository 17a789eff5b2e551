"""A trained model by itself: read from a checkpoint, adapted to a support set, asked for predictions.

A checkpoint holds all that is needed: weights, statistics of norm layers, settings, the form of a task and of an input.
No dataset has to be there.
"""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarun.config.errors import ConfigError
from metarun.config.load import load_settings
from metarun.config.registry import build, declaration, known
from metarun.config.schema import EvalSettings, Settings
from metarun.core.inner import draw_theta, one_by_one
from metarun.core.machine import find_device
from metarun.core.norm import norm_names, use_statistics
from metarun.core.objectives import adapt_to, predict_queries
from metarun.core.seeding import generator_for
from metarun.core.sequences import STRINGS
from metarun.core.types import Backbone, Episode, Examples, Params, TaskSpec, Theta
from metarun.datasets.preprocessing import Features, Items, Named, Preprocessing, read_preprocessing
from metarun.datasets.sampling.episodes import draw_distinct
from metarun.engine import checkpoint as checkpoints
from metarun.engine.build import build_backbone, build_dataset, build_few_shot, has_fixed_ways
from metarun.engine.calibration import Answers, fit_temperature, fit_threshold
from metarun.engine.evaluate import is_transductive, plan_rows
from metarun.runs.folder import RunFolder
from metarun.runs.inputs import Given, Reader, Support
from metarun.runs.prediction import Classifier, Regressor
from metarun.runs.result import Result

MOST_LEFT_OUT, FEWEST_LEFT_OUT = 1000, 9  # examples of a support that are predicted from the others
BATCH = 500  # inputs that pass the network together, if they do not depend on each other


@dataclass(frozen=True, eq=False, repr=False)
class Model:
    """A trained model: `adapt` it to a support set, or `embed` inputs by its network."""

    settings: Settings
    dataset: str  # its name among the options, as in `dataset=folder`
    spec: TaskSpec  # of the training tasks
    preprocessing: Preprocessing
    step: int  # after how many training steps it was saved
    device: torch.device
    theta: Theta
    statistics: Params  # of norm layers over training tasks; empty if the test does not use them
    backbone: Backbone
    temperature: float | None = None  # that logits are divided by, fitted on validation tasks at the run's end
    threshold: float | None = None  # the probability from which on a class is in a set of answers, fitted likewise
    leaves_out: bool = False  # no run has fitted these: they are fitted to each support

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.spec.input_shape))
        return f"Model(algo={self.algo}, {self.spec.kind} of inputs {shape}, step {self.step}, {self.device})"

    @property
    def algo(self) -> str:
        """The name of the method that adapts the model, as at meta-test."""
        return str(self._row(per_query=True).algo["name"])

    def adapt(self, support: Support, *, per_query: bool = True) -> Classifier | Regressor:
        """Adapt to a support set; the model itself stays as it is.

        support: inputs and labels `(x, y)`, or in classification also `{class: inputs}`; or the path of a folder, an
        archive or a table, see `read`. Inputs are an array or tensor [n, *input], or a sequence of n items: pictures as
        uint8 0..255 or as floating-point numbers that the network reads, as files, or as Pillow opens them; or strings
        if the model was trained on texts. Labels are n numbers, strings or other values; in regression values
        [n, *output]. Classes are in the order of the mapping, or sorted. Methods that read one example after another
        read `(x, y)` in its order, a mapping or files in an order drawn once.

        Some methods are tested on all queries of a task at once: norm layers use the statistics of the whole batch, or
        adaptation sees the queries (the row `test` of a result if it says "transductive"). Here each query is predicted
        as if it were the only one, as in the row `test_inductive`; `per_query=False` predicts what is given to one
        call of `predict` together, as in the row `test`. For other methods both are the same.

        A method with a last layer for the ways of its training leaves out the logits of what is more than the support's
        classes; methods without one take any number. Shots may be any, and differ from class to class.

        Raises ConfigError for inputs of another form, and for more classes than a last layer has: it names the methods
        that can.
        """
        row = self._row(per_query)
        reader = self._reader
        given = reader.open_support(support)
        if self.spec.kind == "regression":
            return Regressor(self.read, self._learn(row, self.spec, reader.read_points(given)))
        classes, x, numbers = reader.read_classes(given)
        spec, columns = self._place_classes(row, len(classes))
        declared = declaration("algo", row.algo["name"]).traits
        if declared.order is None:
            order = numbers.argsort(stable=True)  # class by class, as datasets give them
        elif isinstance(given, Mapping):
            order = torch.randperm(len(numbers), generator=generator_for("order", len(numbers)))
        else:
            order = torch.arange(len(numbers))
        examples = Examples(x[order.to(x.device)], columns[numbers[order]].to(self.device))
        unused = 0 if self.spec.ways else spec.output_size - len(classes)
        same = row == self._row(per_query=True)  # they are fitted for this form alone
        fitted = (self.temperature, self.threshold) if same else (None, None)
        if self.leaves_out:
            fitted = self._fit_to_support(row, spec, examples)
        return Classifier(classes, columns, self.read, self._learn(row, spec, examples), unused, *fitted)

    def read(self, x: Given) -> Named:
        """Read the inputs of a file, a folder or an archive, and their labels if it has them.

        Pictures are files of any size and format: one, or those of a folder or an archive, in class folders or beside a
        `labels.csv` if they have labels. They are resized as those of the training were. Inputs of another kind are
        named by their numbers. Texts and SMILES are the column `text` or `smiles` of a table, with their `label`;
        numbers the columns `x` and `y`, or x1, x2, ... Raises ConfigError if there are no inputs, or one cannot be
        used.
        """
        return self._reader.name(x)

    def embed(self, x: Given) -> Tensor:
        """Return the network's features [n, D] of inputs x, or of files, on the CPU.

        Norm layers use the averages over training tasks if the test does, otherwise the statistics of x itself: then
        the features of an input depend on the others. Raises ConfigError if the method has no network of this kind.
        """
        network = self.build_network()
        inputs, row = self._reader.read(self.read(x).items), self._row(per_query=True)
        alone = row.algo.get("norm") == "running" or not norm_names(network)
        with torch.no_grad():
            parts = inputs.split(BATCH) if alone else (inputs,)
            return torch.cat([network(part).cpu() for part in parts])

    def build_network(self) -> Backbone:
        """Build the trained network by itself: [n, *input] -> [n, D]. Raises ConfigError if the method has none."""
        if "backbone" not in self.theta:
            raise ConfigError(f"algo={self.algo} has no component backbone: there are no features")
        network = self._build_backbone(self._row(per_query=True))
        weights = {**self.theta["backbone"], **self.theta.get("norm", {})}
        with torch.no_grad():
            for name, p in network.named_parameters():
                # a method may have norm parameters for each inner step: the network that all tasks share has the first
                p.copy_(weights[name] if weights[name].shape == p.shape else weights[name][0])
        return network.requires_grad_(False)

    @property
    def _reader(self) -> Reader:
        dtype = next((p.dtype for params in self.theta.values() for p in params.values()), torch.float32)
        return Reader(self.preprocessing, self.spec, self.device, dtype)

    def _row(self, per_query: bool) -> EvalSettings:
        """The settings of the test, in the inductive form if there is one and it is asked for."""
        rows = plan_rows(self.settings, bool(norm_names(self.backbone)))
        return rows["test_inductive"] if per_query and "test_inductive" in rows else rows["test"]

    def _build_backbone(self, row: EvalSettings) -> Backbone:
        """A network of its own, whose norm layers use the statistics if the row says so."""
        backbone = copy.deepcopy(self.backbone)
        use_statistics(backbone, self.statistics if row.algo.get("norm") == "running" else {})
        return backbone

    def _place_classes(self, row: EvalSettings, ways: int) -> tuple[TaskSpec, Tensor]:
        """The form of a task of so many classes, and the label that each class has there: [ways].

        Raises ConfigError if the method cannot have so many.
        """
        name, most = row.algo["name"], self.spec.output_size
        if not has_fixed_ways(name):
            return self.spec._replace(output_size=ways, ways=None), torch.arange(ways)
        if ways > most:
            fitting = (other for other in known("algo") if self.spec.kind in declaration("algo", other).traits.kinds)
            networks = (other for other in fitting if "backbone" in declaration("algo", other).runtime)
            others = ", ".join(other for other in networks if not has_fixed_ways(other))
            raise ConfigError(
                f"the support has {ways} classes: this model's last layer has {most} (ways={most} in training); "
                f"methods without such a layer take any number: {others}"
            )
        if most == STRINGS and self.spec.ways is not None:  # labels are strings, another one for each class
            return self.spec, draw_distinct(STRINGS, ways, (1,), generator_for("strings", ways))[0]
        return self.spec, torch.arange(ways)

    def _learn(self, row: EvalSettings, spec: TaskSpec, support: Examples) -> Callable[[Items], Tensor]:
        """Adapt to the support. Returns a function from inputs to predictions [n, outputs], on the CPU."""
        backbone = self._build_backbone(row)
        algo = build_few_shot(row.algo, backbone, spec, trained=self.spec)
        together = is_transductive(row, bool(norm_names(backbone)))
        sees_queries = declaration("algo", row.algo["name"]).traits.sees_queries and row.algo["transductive"]

        def episode(x: Tensor) -> Episode:
            return Episode(support, Examples(x, torch.zeros(len(x))))  # labels that nothing reads

        with torch.no_grad(), one_by_one():
            before = None if sees_queries else adapt_to(algo, self.theta, episode(support.x[:0]))

        def predict(items: Items) -> Tensor:
            x = self._reader.read(items)
            with torch.no_grad(), one_by_one():
                parts = map(episode, (x,) if together else x.split(BATCH))
                return torch.cat([answer(part).cpu() for part in parts])

        def answer(part: Episode) -> Tensor:
            phi = adapt_to(algo, self.theta, part) if sees_queries else before
            return predict_queries(algo, self.theta, phi, part)

        return predict

    def _fit_to_support(
        self, row: EvalSettings, spec: TaskSpec, support: Examples
    ) -> tuple[float | None, float | None]:
        """The temperature and the threshold of sets of answers, if queries are drawn as the support is: each example of
        it is predicted from all others, or MOST_LEFT_OUT are. No threshold of fewer than 9, whose sets would be whole.
        """
        algo = build_few_shot(row.algo, self._build_backbone(row), spec, trained=self.spec)
        numbers = torch.arange(len(support.y), device=support.y.device)
        others_there = (support.y.bincount()[support.y] > 1).nonzero()[:, 0]
        chosen = others_there[:: math.ceil(len(others_there) / MOST_LEFT_OUT) or 1]
        found = []
        with torch.no_grad(), one_by_one():
            for i in chosen:
                task = Episode(*(Examples(*(part[kept] for part in support)) for kept in (numbers != i, numbers == i)))
                found.append(predict_queries(algo, self.theta, adapt_to(algo, self.theta, task), task).cpu())
        if len(found) < FEWEST_LEFT_OUT:
            return None, None
        answers = Answers(torch.cat(found)[None].double(), support.y[chosen].cpu()[None])
        temperature = fit_temperature(answers) or fit_temperature(answers, cautious=True)
        return temperature, fit_threshold(answers, temperature or 1.0)


def load(folder: str | Path, *, device: str = "auto", checkpoint: str = "best") -> Model:
    """Read a model from a run's folder, or from a checkpoint file; see `metarun.load`."""
    if not isinstance(folder, str | Path):
        raise ConfigError(f"load({folder!r}): give the folder of a run, or a checkpoint file")
    if not isinstance(checkpoint, str) or checkpoint == "ensemble":
        raise ConfigError(f"checkpoint is {checkpoint!r}: load one model by best, last or best-STEP")
    path, place = Path(folder), find_device(device)
    if not path.exists():
        raise ConfigError(f"there is no run and no checkpoint {path}")
    file = path if path.is_file() else RunFolder(path).checkpoint(checkpoint)
    tensors, facts = checkpoints.load(file, place)
    if "preprocessing" not in facts:
        raise ConfigError(f"the checkpoint {file} is of an earlier version: it does not say what its inputs are")
    settings = load_settings({**facts["config"], "logger": {"name": "none"}, "device": device})
    spec = TaskSpec(**{**facts["spec"], "input_shape": tuple(facts["spec"]["input_shape"])})
    if spec.kind == "control":
        raise ConfigError(
            f"{file} is of algo={settings.algo['name']}, which acts in a world: there are no examples to adapt to and "
            f"nothing to predict; metarun evaluate tests it"
        )
    with torch.random.fork_rng(devices=[]):
        template = {name: None if name == "weights" else value for name, value in settings.backbone.items()}
        backbone: Backbone = build("backbone", template, input_shape=spec.input_shape)  # fetches no trained weights
        backbone.load_state_dict(tensors["buffers"], strict=False)
    temperature, threshold = find_fitted(file)
    return Model(
        settings=settings,
        dataset=facts["choices"].get("dataset", ""),
        spec=spec,
        preprocessing=read_preprocessing(facts["preprocessing"], place),
        step=facts["step"],
        device=place,
        theta=tensors["theta"],
        statistics=tensors["statistics"],
        backbone=backbone.to(place),
        temperature=temperature,
        threshold=threshold,
    )


def build_untrained(settings: Settings) -> Model:
    """The model of a method that learns nothing beside its encoder's features; needs neither a run nor the dataset.

    Raises ConfigError if the method learns something, or has no encoder.
    """
    device = find_device(settings.device)
    preprocessing = read_preprocessing(build_dataset(settings).preprocessing(), device)
    if not isinstance(preprocessing, Features):
        raise ConfigError("without a run there must be an encoder")
    spec = TaskSpec("classification", (preprocessing.encoder.size,), settings.ways)
    backbone = build_backbone(settings.backbone, spec)
    theta = draw_theta(build_few_shot(settings.algo, backbone, spec), settings.seed)
    if any(theta.values()):
        raise ConfigError(
            f"algo={settings.algo['name']} with backbone={settings.backbone['name']} must be trained first"
        )
    return Model(settings, "", spec, preprocessing, 0, device, theta, {}, backbone, leaves_out=True)


def find_fitted(checkpoint: Path) -> tuple[float | None, float | None]:
    """Temperature and threshold in the result of the run that the checkpoint lies in, if it is what was tested."""
    folder = RunFolder(checkpoint.parent.parent)
    result = folder.result() if (folder.path / "result.json").is_file() else None
    tested = result and folder.checkpoint(result.checkpoint.name)
    if result is None or tested != checkpoint:
        return None, None
    return result.temperature, result.sets.threshold if result.sets else None


@dataclass(frozen=True, eq=False, repr=False)
class Run:
    """A finished run: its folder and its result."""

    folder: Path
    result: Result

    @property
    def scores(self) -> dict[str, NDArray[np.float64]]:
        """Row of the test -> the headline metric of each task, [tasks], unscaled: an accuracy is in 0..1."""
        found = {row: RunFolder(self.folder).read_scores(row, self.result.headline) for row in self.result.rows}
        return {row: scores for row, scores in found.items() if scores is not None}

    def load(self, *, device: str = "auto", checkpoint: str = "best") -> Model:
        """Load the trained model; see `metarun.load`."""
        return load(self.folder, device=device, checkpoint=checkpoint)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"
