"""The wiring: builds the components of a run from its settings. The only reader of all settings."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from metarun.config.errors import ConfigError, did_you_mean
from metarun.config.registry import build, declaration, find_misfit, known, traits_of
from metarun.config.schema import EvalSettings, Settings, apply_data_changes, is_other_dataset
from metarun.config.traits import BackboneTraits, Traits
from metarun.core.batch import unstack
from metarun.core.inner import draw_theta
from metarun.core.machine import find_device, use_device
from metarun.core.norm import collect_statistics, norm_names
from metarun.core.seeding import generator_for
from metarun.core.types import (
    Algorithm,
    Backbone,
    Dataset,
    Encoder,
    FewShotAlgorithm,
    Params,
    Part,
    Split,
    TaskShape,
    TaskSource,
    TaskSpec,
    Theta,
)
from metarun.datasets.encoded import Encoded
from metarun.datasets.preprocessing import Pictures, read_preprocessing
from metarun.datasets.sampling.episodes import EpisodeSampler
from metarun.datasets.sampling.numbered import Numbered
from metarun.datasets.sampling.order import InOrder
from metarun.datasets.storage.cache import cache_dir
from metarun.engine.attack import Adversarial
from metarun.engine.evaluate import Tester, plan_rows
from metarun.engine.optimizers import move_rates


@dataclass(frozen=True)
class Experiment:
    """The components of a run."""

    settings: Settings
    device: torch.device
    dataset: Dataset
    source: TaskSource  # of training tasks
    backbone: Backbone
    algo: Algorithm

    @classmethod
    def build(cls, settings: Settings) -> "Experiment":
        """Build every component. Raises ConfigError."""
        allow_tf32(settings.trainer.precision == "tf32")
        device = find_device(settings.device)
        use_device(device)
        check_features(settings)
        dataset = build_dataset(settings)
        source = training_tasks(settings, dataset)
        backbone = build_backbone(settings.backbone, what_is_read(settings.algo["name"], source.spec))
        algo = build_algorithm(settings.algo, backbone, source.spec)
        source = Numbered(source) if backbone.numbered else source
        experiment = cls(settings, device, dataset, source, backbone.to(device), algo)
        experiment.check_limits()
        _ = experiment.objective
        return experiment

    @property
    def pictures(self) -> Pictures | None:
        """How pictures become the network's inputs; None where inputs are no pictures."""
        facts = self.dataset.preprocessing()
        return cast(Pictures, read_preprocessing(facts, self.device)) if facts.get("kind") == Pictures.kind else None

    @property
    def objective(self) -> Algorithm:
        """The method as it is trained: on attacked queries if the settings say so. Raises ConfigError."""
        trainer, name = self.settings.trainer, self.settings.algo["name"]
        if not trainer.attack_radius:
            return self.algo
        told, form = f"trainer.attack_radius is {trainer.attack_radius}", self.pictures
        if form is None:
            raise ConfigError(f"{told}: queries are attacked as pictures, and the inputs of this run are none")
        if _traits(name).supervised:
            raise ConfigError(f"{told}: algo={name} is trained on examples of all classes, and there are no queries")
        algo, step, steps = cast(FewShotAlgorithm, self.algo), trainer.attack_step, trainer.attack_steps
        return Adversarial(algo, self.source.spec, form, trainer.attack_radius, step, steps)

    def check_limits(self) -> None:
        """Raise ConfigError if gradients of a component that theta does not have are to be clipped."""
        components = draw_theta(self.algo, self.settings.seed).keys() - set(traits_of(self.algo).carried)
        trainer = self.settings.trainer
        for key, limits in (("clip_norm", trainer.clip_norm), ("clip_value", trainer.clip_value)):
            for name in limits if isinstance(limits, dict) else {}:
                if name not in components:
                    hint = did_you_mean(name, components) or f": choose from {', '.join(components)}"
                    raise ConfigError(f"trainer.{key}.{name}: the algorithm has no such component{hint}")

    def draw_theta(self) -> Theta:
        """Draw theta from the run's seed, ready to be trained."""
        return self.make_trainable(draw_theta(self.algo, self.settings.seed))

    def make_trainable(self, theta: Theta) -> Theta:
        """Copy theta to the device and let it require gradients."""
        return {c: {n: p.to(self.device).requires_grad_() for n, p in params.items()} for c, params in theta.items()}

    @property
    def pixels(self) -> int:
        """How many pixels has a picture that the network convolves; 0 if it convolves none."""
        shape, weights = self.source.spec.input_shape, self.backbone.parameters()
        return math.prod(shape[1:]) if len(shape) == 3 and any(p.dim() == 4 for p in weights) else 0

    def build_optimizer(self, theta: Theta) -> torch.optim.Optimizer:
        """Build the outer optimiser, with one parameter group per component. Raises ConfigError."""
        groups = [
            {"params": list(params.values()), "name": component}
            for component, params in theta.items()
            if params and component not in traits_of(self.algo).carried
        ]
        if not theta:
            raise ConfigError(f"algo={self.settings.algo['name']} learns nothing: test it beside a method that does")
        if not groups:  # PyTorch's optimisers want a parameter
            groups = [{"params": [torch.zeros(0, device=self.device, requires_grad=True)], "name": "none"}]
        try:
            optimizer: torch.optim.Optimizer = build("optimizer", self.settings.optimizer).over(groups)
        except ValueError as error:
            name = self.settings.optimizer["name"]
            raise ConfigError(f"optimizer={name} cannot work with its settings: {error}") from error
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        if self.device.type == "cuda":
            move_rates(optimizer, self.device)
        return optimizer

    def measure_statistics(self, theta: Theta) -> Params:
        """Average the statistics of norm layers over training tasks, attacked ones where training attacks them; empty
        if no row of the test uses them.
        """
        if not any(row.algo.get("norm") == "running" for row in self.plan_rows().values()):
            return {}
        generator = generator_for(self.settings.seed, "statistics", device=self.device)
        tasks, objective = unstack(self.source.sample(self.settings.eval.statistics_tasks, generator)), self.objective
        if isinstance(objective, Adversarial):
            tasks = [objective.attack(theta, task) for task in tasks]
        return collect_statistics(self.backbone, lambda: [self.algo.task_loss(theta, task) for task in tasks])

    def build_tester(self, row: EvalSettings, split: Split) -> Tester:
        """Build what tests with the settings of `row`: on tasks of val, or on those that the row asks for.

        Raises ConfigError for a misfit.
        """
        dataset, part = self.find_dataset(row, split)
        source = put_in_order(find_tasks(dataset, part, row), row.algo)
        check_inputs(row, source.spec, self.source.spec)
        algo = build_algorithm(row.algo, self.backbone, source.spec, trained=self.source.spec)
        seed = self.settings.seed
        for component in draw_theta(algo, seed).keys() - draw_theta(self.algo, seed).keys():
            name, trained = row.algo["name"], self.settings.algo["name"]
            raise ConfigError(f"eval.algo.name is {name}: it needs a {component}, which algo={trained} does not learn")
        return Tester(algo, self.backbone, source, row, split, dataset)

    def find_dataset(self, row: EvalSettings, split: Split) -> tuple[Dataset, Part]:
        """The dataset and the classes that a row is tested on; it is validated on the run's own. Raises ConfigError."""
        own = self.settings.dataset
        values = apply_data_changes(own, row.dataset)
        if row.split == "all" and not declaration("dataset", values["name"]).traits.pooled:
            name = values["name"]
            raise ConfigError(f"eval.split is all: dataset={name} has no such split, choose train, val or test")
        if split == "val" and is_other_dataset(own, row.dataset):
            return self.dataset, split
        dataset = build_dataset(replace(self.settings, dataset=values), self.device) if row.dataset else self.dataset
        return dataset, split if split == "val" else row.split

    @property
    def learns(self) -> bool:
        """Whether there are weights to train; class means of fixed features have none."""
        return any(draw_theta(self.algo, self.settings.seed).values())

    @property
    def has_norm(self) -> bool:
        """Whether the backbone has norm layers."""
        return bool(norm_names(self.backbone))

    def plan_rows(self) -> dict[str, EvalSettings]:
        """Return the rows of the result (see `metarun.engine.evaluate.plan_rows`)."""
        return plan_rows(self.settings, self.has_norm)


def find_tasks(dataset: Dataset, part: Part, row: EvalSettings) -> TaskSource:
    """The tasks of a row of the test. Raises ConfigError."""
    source = dataset.tasks(cast(Split, part), TaskShape(row.ways, row.shots, row.queries))
    if row.dirichlet is None:
        return source
    if not isinstance(source, EpisodeSampler):
        name = dataset.identity()["name"]
        raise ConfigError(f"eval.dirichlet is {row.dirichlet}: the tasks of dataset={name} are no draws from classes")
    return replace(source, dirichlet=row.dirichlet)


def check_inputs(row: EvalSettings, spec: TaskSpec, trained: TaskSpec) -> None:
    """Raise ConfigError if the network cannot read the tasks of another dataset."""
    if not row.dataset:
        return
    read, found = ((part.kind, part.inputs, list(part.input_shape)) for part in (trained, spec))
    if found != read:
        name = row.dataset.get("collection", row.dataset.get("name", row.dataset))  # or only settings that differ
        raise ConfigError(
            f"eval.dataset is {name}: its tasks are {' of '.join(map(str, found))}, "
            f"this model was trained for {' of '.join(map(str, read))}"
        )


def allow_tf32(allowed: bool) -> None:
    """Let matrix products and convolutions on a GPU round their inputs to TF32, or not."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def build_dataset(settings: Settings, device: torch.device | None = None) -> Dataset:
    """Build the configured dataset, on the configured device if no other is given. Raises ConfigError."""
    data_dir = Path(settings.data_dir).expanduser().absolute() if settings.data_dir else cache_dir()
    device = device or find_device(settings.device)
    values = settings.dataset
    if settings.encoder and "placement" in values:
        values = values | {"placement": "disk"}  # the encoder reads pictures from there, once; tasks hold features
    dataset: Dataset = build("dataset", values, data_dir=data_dir, device=device)
    check_methods(dataset, values["name"])
    return Encoded(dataset, build_encoder(settings.encoder, device), settings.encoder) if settings.encoder else dataset


def build_encoder(values: Mapping[str, Any], device: torch.device) -> Encoder:
    """Build an encoder; its weights are read when it first encodes. Raises ConfigError."""
    encoder: Encoder = build("encoder", values, device=device)
    return encoder


def check_methods(dataset: object, name: str) -> None:
    """Raise ConfigError if a dataset, which may be another package's, lacks a method of the protocol."""
    wanted = [method for method in vars(Dataset) if not method.startswith("_")]
    missing = [f"{method}()" for method in wanted if not callable(getattr(dataset, method, None))]
    if missing:
        raise ConfigError(
            f"dataset={name}: its class {type(dataset).__name__} has no {', '.join(missing)}: it must have those "
            f"of metarun.core.types.Dataset, {', '.join(wanted)}"
        )


def training_tasks(settings: Settings, dataset: Dataset) -> TaskSource:
    """The source of training tasks; for a supervised method, of minibatches. Raises ConfigError."""
    source = dataset.tasks("train", TaskShape(settings.ways, settings.shots, settings.queries))
    if _traits(settings.algo["name"]).supervised and source.spec.kind == "classification":
        if not isinstance(source, EpisodeSampler):
            data = settings.dataset.get("collection", settings.dataset["name"])
            raise ConfigError(
                f"algo={settings.algo['name']} learns to tell all training classes apart: "
                f"the tasks of dataset={data} have none in common"
            )
        source = source.minibatches(settings.algo["batch_size"])
    return put_in_order(source, settings.algo)


def put_in_order(source: TaskSource, algo: Mapping[str, Any]) -> TaskSource:
    """Order the examples of tasks for a method that declares an `order`. Raises ConfigError."""
    traits = _traits(algo["name"])
    strings = traits.string_labels and algo["labels"] == "strings"
    return InOrder(source, traits.order == "mixed", strings) if traits.order else source


def build_backbone(values: Mapping[str, Any], spec: TaskSpec) -> Backbone:
    """Build a backbone (a template) for inputs of this spec. Raises ConfigError for a misfit."""
    with torch.random.fork_rng(devices=[]):
        backbone: Backbone = build("backbone", values, input_shape=spec.input_shape)
    name = values["name"]
    if (reads := traits_of_backbone(name).inputs) != spec.inputs:
        fitting = ", ".join(other for other in known("backbone") if traits_of_backbone(other).inputs == spec.inputs)
        raise ConfigError(f"backbone={name} reads {reads}, this dataset has {spec.inputs}: choose {fitting}")
    return backbone


def check_features(settings: Settings) -> None:
    """Raise ConfigError for a network that cannot read what the encoder makes, before anything is encoded."""
    backbone, vectors = settings.backbone["name"], BackboneTraits()
    if settings.encoder and (traits := traits_of_backbone(backbone)) != vectors:
        fitting = [name for name in known("backbone") if traits_of_backbone(name) == vectors]
        raise ConfigError(
            f"backbone={backbone} reads {'pictures' if traits.pictures else traits.inputs}, and "
            f"encoder={settings.encoder['name']} makes vectors: leave it out, or choose {', '.join(fitting)}"
        )


def what_is_read(algo: str, spec: TaskSpec) -> TaskSpec:
    """The spec with the inputs of the method's network: in control also the last action and reward if it remembers."""
    if spec.world is None or not _traits(algo).remembers:
        return spec
    return spec._replace(input_shape=(spec.world.observed + spec.world.actions + 2,))


def traits_of_backbone(name: str) -> BackboneTraits:
    """What the backbone of this name reads."""
    traits: BackboneTraits = declaration("backbone", name).traits or BackboneTraits()
    return traits


def build_few_shot(
    values: Mapping[str, Any], backbone: Backbone, spec: TaskSpec, trained: TaskSpec | None = None
) -> FewShotAlgorithm:
    """Build an algorithm that adapts to examples. Raises ConfigError if it is none, and as `build_algorithm` does."""
    algo = build_algorithm(values, backbone, spec, trained)
    if not isinstance(algo, FewShotAlgorithm):
        raise ConfigError(f"algo={values['name']} acts in a world: it adapts to no examples, and predicts none")
    return algo


def build_algorithm(
    values: Mapping[str, Any], backbone: Backbone, spec: TaskSpec, trained: TaskSpec | None = None
) -> Algorithm:
    """Build an algorithm for tasks of this spec; `trained` is the spec it was trained with, if that may be another.

    Its networks are templates. Raises ConfigError for a misfit.
    """
    name = values["name"]
    check_spec(name, spec)
    if has_fixed_ways(name) and trained is not None and trained.output_size != spec.output_size:
        raise ConfigError(
            f"eval.ways is {spec.output_size}: this model has a last layer for ways={trained.output_size}; only "
            f"methods without one (for example protonet) can be tested with other ways"
        )
    with torch.random.fork_rng(devices=[]):
        head = backbone.head(spec.output_size) if "head" in declaration("algo", name).runtime else None
        algo: Algorithm = build("algo", values, backbone=backbone, head=head, spec=spec, world=spec.world)
    return algo


def check_spec(algo: str, spec: TaskSpec) -> None:
    """Raise ConfigError if the method cannot learn tasks of this spec."""
    if misfit := find_misfit(algo, spec.kind):
        raise ConfigError(misfit)
    if spec.ragged and not _traits(algo).ragged:
        fitting = [other for other in known("algo") if _traits(other).ragged]
        raise ConfigError(
            f"algo={algo} takes tasks of one size, and this dataset's differ: choose from {', '.join(fitting)}"
        )


def has_fixed_ways(algo: str) -> bool:
    """Whether the method's weights depend on the number of classes, so that a model has the one it was trained with."""
    return "head" in declaration("algo", algo).runtime or _traits(algo).sized


def _traits(algo: str) -> Traits:
    traits: Traits = declaration("algo", algo).traits
    return traits
