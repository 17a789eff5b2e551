"""The wiring: from settings to a dataset, an algorithm, its training and its test."""

import copy
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from metarun import checkpoint
from metarun.backbones.norm import collect_statistics, norm_names, use_statistics
from metarun.datasets.cache import cache_dir
from metarun.environment import commit, device_name, find_device, peak_memory_mib, versions
from metarun.evaluator import Scores, evaluate
from metarun.execution import unstack
from metarun.folder import RunFolder
from metarun.logs import Logger, RunLog, log_to, say
from metarun.objectives import HEADLINE, HIGHER_IS_BETTER
from metarun.registry import build, declaration, known
from metarun.report import draw_curves, result_lines, write_scores
from metarun.seeding import generator_for
from metarun.settings import ConfigError, EvalSettings, Settings
from metarun.trainer import NonFiniteLoss, Progress, Window, train
from metarun.types import Algorithm, Backbone, Dataset, Params, Split, TaskShape, TaskSource, TaskSpec, Theta

STATISTICS_TASKS = 20  # training tasks that running statistics are averaged over


class Stopped(Exception):
    """A signal ended the run early, after it was saved."""


class Failed(Exception):
    """The run itself went wrong, through no mistake in its settings."""


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
        """Build every component; weights are drawn from the seed. Raises ConfigError."""
        device, dataset = find_device(settings.device), dataset_of(settings)
        source = dataset.tasks("train", TaskShape(settings.ways, settings.shots, settings.queries))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            backbone = build("backbone", settings.backbone, input_shape=source.spec.input_shape)
            algo = algorithm(settings.algo, backbone, source.spec)
        return cls(settings, device, dataset, source, backbone.to(device), algo)

    def initial_theta(self) -> Theta:
        return self.trainable(self.algo.init())

    def trainable(self, theta: Theta) -> Theta:
        return {c: {n: p.to(self.device).requires_grad_() for n, p in ps.items()} for c, ps in theta.items()}

    def optimizer(self, theta: Theta) -> torch.optim.Optimizer:
        """One parameter group per component, so that each can be told apart."""
        groups = [{"params": list(params.values()), "name": c} for c, params in theta.items() if params]
        optimizer: torch.optim.Optimizer = build("optimizer", self.settings.optimizer).over(groups)
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        return optimizer

    def statistics(self, theta: Theta) -> Params:
        """What norm layers see on average over training tasks, where the method is tested with that."""
        if self.algo.norm != "running":
            return {}
        generator = generator_for(self.settings.seed, "statistics", device=self.device)
        tasks = self.source.sample(STATISTICS_TASKS, generator)
        return collect_statistics(
            self.backbone, lambda: [self.algo.task_loss(theta, task) for task in unstack(tasks)]
        )

    def tester(self, how: EvalSettings, split: Split) -> tuple[Algorithm, TaskSource]:
        """The algorithm with its meta-test settings, and the tasks to test it on. Raises ConfigError."""
        source = self.dataset.tasks(split, TaskShape(how.ways, how.shots, how.queries))
        values = {**self.settings.algo, **how.algo}
        algo = algorithm(values, copy.deepcopy(self.backbone), source.spec, trained=self.source.spec)
        return algo, source

    def scores(
        self,
        theta: Theta,
        statistics: Params,
        tester: tuple[Algorithm, TaskSource],
        how: EvalSettings,
        split: Split,
        tasks: int,
    ) -> Scores:
        """Test `theta` as `how` says, by the same `adapt` as in training."""
        algo, source = tester
        if algo.norm == "running":
            use_statistics(algo.backbone, statistics)
        return evaluate(
            algo,
            theta,
            source,
            tasks=tasks,
            seed=how.seed,
            split=split,
            tasks_per_chunk=how.tasks_per_chunk,
            execution=self.settings.trainer.execution,
            progress=split == "test" and sys.stderr.isatty(),
        )

    def eval_rows(self) -> dict[str, EvalSettings]:
        """The rows of a result: "test", each of the variants, and for those that are transductive, as batch
        statistics make them, the same test with queries predicted one by one.
        """
        settings = self.settings.eval
        rows = {"test": settings}
        for name, changes in settings.variants.items():
            rows[name] = replace(
                settings, **{**changes, "algo": {**settings.algo, **changes.get("algo", {})}}
            )
        inductive = {
            f"{name}_inductive": replace(row, algo={**row.algo, "norm": "per_query"})
            for name, row in rows.items()
            if self.transductive(row)
        }
        return rows | inductive

    def transductive(self, how: EvalSettings) -> bool:
        """Whether the prediction for one query depends on the others."""
        norm = {**self.settings.algo, **how.algo}["norm"]
        return norm == "batch" and bool(norm_names(self.backbone))


def algorithm(
    values: Mapping[str, Any], backbone: Backbone, spec: TaskSpec, trained: TaskSpec | None = None
) -> Algorithm:
    """The algorithm for tasks of this spec, `trained` on tasks of that one. Raises ConfigError for a misfit."""
    name = values["name"]
    declared = declaration("algo", name)
    if spec.kind not in declared.constants["kinds"]:
        fitting = [
            other for other in known("algo") if spec.kind in declaration("algo", other).constants["kinds"]
        ]
        raise ConfigError(f"algo={name} cannot learn {spec.kind}: choose from {', '.join(fitting)}")
    has_head = "head" in declared.runtime
    if has_head and trained is not None and trained.output_size != spec.output_size:
        raise ConfigError(
            f"eval.ways is {spec.output_size}: this model has a last layer for ways={trained.output_size}; only "
            f"methods without one (as protonet) can be tested with other ways"
        )
    head = backbone.head(spec.output_size) if has_head else None
    algo: Algorithm = build("algo", values, backbone=backbone, head=head, spec=spec)
    return algo


def dataset_of(settings: Settings) -> Dataset:
    """The configured dataset, on the configured device. Raises ConfigError."""
    data_dir = Path(settings.data_dir).expanduser().absolute() if settings.data_dir else cache_dir()
    dataset: Dataset = build(
        "dataset", settings.dataset, data_dir=data_dir, device=find_device(settings.device)
    )
    return dataset


def run(settings: Settings, folder: RunFolder, config: dict[str, Any], choices: dict[str, Any]) -> float:
    """Train, test and report; continue where an earlier sitting stopped. Returns the best validation score.

    Raises ConfigError for mistakes of the user's, Stopped after a signal, Failed where training diverged.
    """
    with folder.alone():
        folder.start(config, choices)
        handler = log_to(folder.path)
        try:
            if (result := folder.result()) is None:
                result = _train_and_test(settings, folder, config)
            else:
                say.info("%s is finished already", folder.path)
            for line in result_lines(result):
                say.info(line)
            say.info("in %s: result.json, curves.png, metrics.csv, scores/, checkpoints/", folder.path)
            return float(result["validation"]["best"])
        finally:
            say.removeHandler(handler)
            handler.close()


def _train_and_test(settings: Settings, folder: RunFolder, config: dict[str, Any]) -> dict[str, Any]:
    started = time.perf_counter()
    experiment = Experiment.of(settings)
    for how in experiment.eval_rows().values():  # what cannot be tested fails now, not after the training
        for split in ("val", "test"):
            experiment.tester(how, split)
    progress = _train(experiment, folder, config)
    tensors, facts = checkpoint.load(folder.checkpoint(settings.eval.checkpoint), experiment.device)
    result = facts | {
        "test": test(experiment, tensors, folder),
        "checkpoint": {"name": settings.eval.checkpoint, "step": facts.pop("step")},
        "validation": {"best": progress.best, "step": progress.best_step, "tasks": settings.eval.val_tasks},
        "training": {
            "steps": progress.step,
            "seconds": round(progress.seconds, 1),
            "tasks_per_second": round(progress.step * settings.trainer.tasks_per_step / progress.seconds, 1),
            "peak_memory_mib": peak_memory_mib(experiment.device),
        },
        "wall_seconds": round(time.perf_counter() - started, 1),
    }
    result.pop("progress")
    folder.finish(result)
    draw_curves(folder.path)
    return result


def _train(experiment: Experiment, folder: RunFolder, config: dict[str, Any]) -> Progress:
    settings = experiment.settings
    theta, progress, window = experiment.initial_theta(), Progress(), Window()
    optimizer = experiment.optimizer(theta)
    if folder.last.exists():
        tensors, facts = checkpoint.load(folder.last, experiment.device)
        theta = experiment.trainable(tensors["theta"])
        optimizer = experiment.optimizer(theta)
        optimizer.load_state_dict(tensors["optimizer"])
        progress, window = Progress(**facts["progress"]), Window(**tensors["window"])
        if progress.step < settings.trainer.steps:
            say.info("continuing at step %d", progress.step)
    headline = HEADLINE[experiment.source.spec.kind]
    sign = 1 if HIGHER_IS_BETTER[headline] else -1
    about = {
        "config": config,
        "choices": folder.choices(),
        "dataset": experiment.dataset.identity(),
        "device": device_name(experiment.device),
        "versions": versions(),
        "commit": commit(),
    }

    tester = experiment.tester(settings.eval, "val")

    def validate(theta: Theta) -> tuple[float, dict[str, Any]]:
        statistics = experiment.statistics(theta)
        scores = experiment.scores(theta, statistics, tester, settings.eval, "val", settings.eval.val_tasks)
        summary = scores.summary()
        means = {name: value["mean"] for name, value in summary.items()}
        return means[headline], means | {"ci95": summary[headline]["ci95"]}

    def save(name: str) -> None:
        checkpoint.save(
            folder.checkpoint(name),
            {
                "theta": theta,
                "optimizer": optimizer.state_dict(),
                "statistics": experiment.statistics(theta),
                "window": asdict(window),
            },
            about | {"step": progress.step, "progress": asdict(progress)},
        )

    loggers: list[Logger] = [build("logger", settings.logger)]
    for logger in loggers:
        logger.open(folder.path, config)
    log = RunLog(folder.path, loggers, progress.step)
    schedule = build("schedule", settings.schedule)
    try:
        train(
            experiment.algo,
            theta,
            experiment.source,
            optimizer,
            lambda step: schedule.factor(step, settings.trainer.steps),
            settings.trainer,
            seed=settings.seed,
            device=experiment.device,
            progress=progress,
            window=window,
            validate=validate,
            improves=lambda score, best: sign * score > sign * best,
            save=save,
            log=log,
        )
    except NonFiniteLoss as error:
        kept = (
            f"the last good checkpoint is {folder.last}"
            if folder.last.exists()
            else "no checkpoint was written yet"
        )
        raise Failed(
            f"training diverged: {error}; {kept}. A smaller learning rate or trainer.clip_norm may help"
        ) from error
    finally:
        log.close()
    if progress.stopped:
        raise Stopped(
            f"stopped by {progress.stopped} at step {progress.step}, saved; continue with: metarun resume {folder.path}"
        )
    return progress


def test(experiment: Experiment, tensors: dict[str, Any], folder: RunFolder) -> dict[str, Any]:
    """Every row of the result: settings of the test, which tasks, mean and interval of each metric."""
    results = {}
    for name, row in experiment.eval_rows().items():
        started = time.perf_counter()
        tester = experiment.tester(row, "test")
        scores = experiment.scores(tensors["theta"], tensors["statistics"], tester, row, "test", row.tasks)
        write_scores(folder.path / "scores" / f"{name}.csv", scores)
        results[name] = scores.summary() | {
            "ways": row.ways,
            "shots": row.shots,
            "queries": row.queries,
            "tasks": row.tasks,
            "task_hash": scores.task_hash,
            "algo": {**experiment.settings.algo, **row.algo},
            "transductive": experiment.transductive(row),
            "seconds": round(time.perf_counter() - started, 1),
        }
    return results


def retest(settings: Settings, folder: RunFolder, overrides: list[str]) -> None:
    """Test a run's checkpoint as `settings.eval` says; the result goes beside the run's own, under `tests/`."""
    path = folder.checkpoint(settings.eval.checkpoint)
    experiment = Experiment.of(settings)
    tensors, facts = checkpoint.load(path, experiment.device)
    beside = RunFolder(folder.path / "tests" / ("-".join(overrides).replace("/", "_") or "again"))
    beside.path.mkdir(parents=True, exist_ok=True)
    result = {
        "checkpoint": {"name": str(path), "step": facts["step"]},
        "test": test(experiment, tensors, beside),
    }
    beside.finish(result)
    print(*result_lines(result), f"in {beside.path}", sep="\n")
