"""The wiring: from settings to a dataset, an algorithm, and what tests it. The only reader of all settings."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metarun.config.errors import ConfigError, did_you_mean
from metarun.config.registry import build, declaration, known, traits_of
from metarun.config.schema import EvalSettings, Settings, at_meta_test
from metarun.config.traits import BackboneTraits, Inputs
from metarun.core.batch import Execution, unstack
from metarun.core.inner import draw_theta
from metarun.core.machine import find_device
from metarun.core.norm import collect_statistics, norm_names
from metarun.core.seeding import generator_for
from metarun.core.types import Algorithm, Backbone, Dataset, Params, Split, TaskShape, TaskSource, TaskSpec, Theta
from metarun.datasets.sampling.episodes import EpisodeSampler
from metarun.datasets.sampling.numbered import Numbered
from metarun.datasets.sampling.order import InOrder
from metarun.datasets.storage.cache import cache_dir
from metarun.engine.distributed import Ranks
from metarun.engine.ensemble import Ensemble
from metarun.engine.evaluate import Scores, Tester, inductive

STATISTICS_TASKS = 20  # training tasks that running statistics are averaged over


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
    def of(cls, settings: Settings) -> "Experiment":
        """Build every component. Raises ConfigError."""
        device, dataset = find_device(settings.device), dataset_of(settings)
        exact = settings.trainer.precision != "tf32"
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = not exact
        source: TaskSource = dataset.tasks("train", TaskShape(settings.ways, settings.shots, settings.queries))
        if declaration("algo", settings.algo["name"]).traits.supervised and source.spec.kind == "classification":
            if not isinstance(source, EpisodeSampler):
                raise ConfigError(
                    f"algo={settings.algo['name']} learns to tell all training classes apart: "
                    f"the tasks of dataset={settings.dataset['name']} have none in common"
                )
            source = source.minibatches(settings.algo["batch_size"])
        source = in_order(source, settings.algo)
        with torch.random.fork_rng(devices=[]):  # templates: what weights they have does not matter
            backbone = build("backbone", settings.backbone, input_shape=source.spec.input_shape)
        check_inputs(settings.backbone["name"], source.spec)
        algo = algorithm(settings.algo, backbone, source.spec)
        source = Numbered(source) if backbone.numbered else source
        experiment = cls(settings, device, dataset, source, backbone.to(device), algo)
        experiment.check_components()
        return experiment

    def check_components(self) -> None:
        """Raises ConfigError where a setting names a component that theta does not have."""
        components = draw_theta(self.algo, self.settings.seed).keys() - set(traits_of(self.algo).carried)
        for key in ("clip_norm", "clip_value"):
            limits = getattr(self.settings.trainer, key)
            for name in limits if isinstance(limits, dict) else {}:
                if name not in components:
                    hint = did_you_mean(name, components) or f": choose from {', '.join(components)}"
                    raise ConfigError(f"trainer.{key}.{name}: the algorithm has no such component{hint}")

    def initial_theta(self) -> Theta:
        """Draw theta from the run's seed, ready to be trained."""
        return self.trainable(draw_theta(self.algo, self.settings.seed))

    def trainable(self, theta: Theta) -> Theta:
        """On the device, in the memory order that is set, ready to be trained."""

        def placed(p: Tensor) -> Tensor:
            order = self.settings.trainer.channels_last and p.dim() == 4
            return p.to(self.device, memory_format=torch.channels_last if order else torch.preserve_format)

        return {c: {n: placed(p).requires_grad_() for n, p in params.items()} for c, params in theta.items()}

    def optimizer(self, theta: Theta) -> torch.optim.Optimizer:
        """One parameter group per component, so that each can be told apart. Raises ConfigError."""
        groups = [
            {"params": list(params.values()), "name": component}
            for component, params in theta.items()
            if params and component not in traits_of(self.algo).carried
        ]
        try:
            optimizer: torch.optim.Optimizer = build("optimizer", self.settings.optimizer).over(groups)
        except ValueError as error:
            name = self.settings.optimizer["name"]
            raise ConfigError(f"optimizer={name} cannot work with its settings: {error}") from error
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
            if self.device.type == "cuda" and "capturable" in group:  # by a CUDA graph, which reads the rate there
                group |= {"capturable": True, "lr": torch.tensor(group["lr"], device=self.device)}
        return optimizer

    def statistics(self, theta: Theta) -> Params:
        """What norm layers see on average over training tasks, where a row of the test asks for that."""
        if not any(row.algo["norm"] == "running" for row in self.eval_rows().values()):
            return {}
        generator = generator_for(self.settings.seed, "statistics", device=self.device)
        tasks = self.source.sample(STATISTICS_TASKS, generator)
        return collect_statistics(self.backbone, lambda: [self.algo.task_loss(theta, task) for task in unstack(tasks)])

    def tester(self, how: EvalSettings, split: Split) -> "Tester":
        """What tests as the row `how` says on tasks of `split`. Raises ConfigError where that cannot be."""
        source = in_order(self.dataset.tasks(split, TaskShape(how.ways, how.shots, how.queries)), how.algo)
        backbone = copy.deepcopy(self.backbone)
        algo = algorithm(how.algo, backbone, source.spec, trained=self.source.spec)
        seed = self.settings.seed
        for component in draw_theta(algo, seed).keys() - draw_theta(self.algo, seed).keys():
            name, trained = how.algo["name"], self.settings.algo["name"]
            raise ConfigError(f"eval.algo.name is {name}: it needs a {component}, which algo={trained} does not learn")
        return Tester(algo, backbone, source, how, split)

    def tested(
        self, how: EvalSettings, models: Sequence[tuple[Theta, Params]], execution: Execution, ranks: Ranks
    ) -> Scores:
        """The test of a trained theta with its running statistics; of several of them as an ensemble."""
        testers = [self.tester(how, "test") for _ in models]
        for tester, (_, statistics) in zip(testers, models):
            tester.normalise_by(statistics)
        members = [(tester.algo, theta) for tester, (theta, _) in zip(testers, models)]
        algo, theta = members[0] if len(members) == 1 else (Ensemble(members, testers[0].source.spec), {})
        return testers[0].evaluated(algo, theta, how.tasks, execution, ranks)

    def eval_rows(self) -> dict[str, EvalSettings]:
        """The rows of a result: "test", each of the variants, and for those that are transductive, as batch
        statistics or the method itself make them, the same test with queries predicted one by one, which have no part
        in adaptation. Each with the whole of its `algo`.
        """
        settings = self.settings.eval
        test = replace(settings, algo=at_meta_test(self.settings.algo, settings.algo))
        rows = {"test": test}
        for name, changes in settings.variants.items():
            rows[name] = replace(test, **{**changes, "algo": at_meta_test(test.algo, changes.get("algo", {}))})
        alone = {
            f"{name}_inductive": replace(row, algo={**row.algo, **inductive(row.algo)})
            for name, row in rows.items()
            if self.transductive(row)
        }
        return rows | alone

    def transductive(self, how: EvalSettings) -> bool:
        """Whether the prediction for one query depends on the others."""
        by_batch = how.algo["norm"] == "batch" and bool(norm_names(self.backbone))
        sees_queries = declaration("algo", how.algo["name"]).traits.sees_queries
        return by_batch or (sees_queries and how.algo["transductive"])


def algorithm(
    values: Mapping[str, Any], backbone: Backbone, spec: TaskSpec, trained: TaskSpec | None = None
) -> Algorithm:
    """The algorithm for tasks of this spec, `trained` on tasks of that one. Raises ConfigError for a misfit."""
    name = values["name"]
    declared = declaration("algo", name)
    others = ((other, declaration("algo", other).traits) for other in known("algo"))  # read where there is a misfit
    if spec.kind not in declared.traits.kinds:
        fitting = [other for other, traits in others if spec.kind in traits.kinds]
        raise ConfigError(f"algo={name} cannot learn {spec.kind}: choose from {', '.join(fitting)}")
    if spec.ragged and not declared.traits.ragged:
        fitting = [other for other, traits in others if traits.ragged]
        raise ConfigError(
            f"algo={name} takes tasks of one size, and this dataset's differ: choose from {', '.join(fitting)}"
        )
    has_head = "head" in declared.runtime
    sized = has_head or declared.traits.sized
    if sized and trained is not None and trained.output_size != spec.output_size:
        raise ConfigError(
            f"eval.ways is {spec.output_size}: this model has a last layer for ways={trained.output_size}; only "
            f"methods without one (as protonet) can be tested with other ways"
        )
    with torch.random.fork_rng(devices=[]):
        head = backbone.head(spec.output_size) if has_head else None
        algo: Algorithm = build("algo", values, backbone=backbone, head=head, spec=spec)
    return algo


def in_order(source: TaskSource, algo: Mapping[str, Any]) -> TaskSource:
    """The tasks as the algorithm reads them: where its class names an `order`, in one. Raises ConfigError."""
    traits = declaration("algo", algo["name"]).traits
    strings = traits.string_labels and algo["labels"] == "strings"
    return InOrder(source, traits.order == "mixed", strings) if traits.order else source


def check_inputs(name: str, spec: TaskSpec) -> None:
    """Raises ConfigError where the dataset has inputs of another sort than the backbone reads."""
    if inputs_of(name) != spec.inputs:
        fitting = ", ".join(other for other in known("backbone") if inputs_of(other) == spec.inputs)
        raise ConfigError(f"backbone={name} reads {inputs_of(name)}, this dataset has {spec.inputs}: choose {fitting}")


def inputs_of(backbone: str) -> Inputs:
    """What the backbone of this name reads."""
    traits: BackboneTraits = declaration("backbone", backbone).traits or BackboneTraits()
    return traits.inputs


def dataset_of(settings: Settings) -> Dataset:
    """The configured dataset, on the configured device. Raises ConfigError."""
    data_dir = Path(settings.data_dir).expanduser().absolute() if settings.data_dir else cache_dir()
    dataset: Dataset = build("dataset", settings.dataset, data_dir=data_dir, device=find_device(settings.device))
    return dataset
