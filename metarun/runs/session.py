"""One sitting of a run: restore its state, train from there on, test what was trained."""

import functools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_map

from metarun.config.errors import ConfigError, Failed, Stopped
from metarun.config.registry import build, declaration, metric, traits_of
from metarun.config.schema import Settings
from metarun.config.words import count, format_duration
from metarun.core.objectives import ANSWERS, ONE_BY_ONE, headline_metric
from metarun.core.seeding import generator_for
from metarun.core.statistics import Estimate, over_classes, over_tasks
from metarun.core.types import Task
from metarun.engine import checkpoint
from metarun.engine.baselines import Baselines, list_baselines
from metarun.engine.build import Experiment
from metarun.engine.calibration import (
    collect_answers,
    fit_temperature,
    fit_threshold,
    measure_sets,
    measure_unknown,
    open_tasks,
)
from metarun.engine.capture import capture_descent, capture_step, choose_recording
from metarun.engine.distributed import Ranks
from metarun.engine.evaluate import NOTHING, Model, Scores, Tester, forget, is_transductive
from metarun.engine.loop import run_eagerly, train
from metarun.engine.plan import MetaGradient, Plan
from metarun.engine.prefetch import Prefetch, needs_copies
from metarun.engine.state import Log, NonFiniteLoss, Progress, Silence, State, Window
from metarun.runs.artifacts import draw_regret, draw_vectors, write_scores
from metarun.runs.classes import Pairs
from metarun.runs.draft import Draft, make_key
from metarun.runs.folder import RunFolder
from metarun.runs.log import RunLog, say
from metarun.runs.loggers import Logger
from metarun.runs.result import BASELINES, UNTRAINED, Doubt, Row, Sets, Unknown
from metarun.runs.warnings import ROUNDING
from metarun.runs.weights import check_shapes

FEW_TASKS = 100  # that untrained weights and baselines are tested on


def train_run(experiment: Experiment, folder: RunFolder | None, about: dict[str, Any], ranks: Ranks) -> Progress:
    """Train from the last checkpoint on, as rank 0 with the run's folder, or as another rank without one.

    Raises Failed if training diverges, Stopped after a signal.
    """
    session = Session(experiment, folder, about, ranks, restore_state(experiment, folder, ranks))
    try:
        session.train()
    except NonFiniteLoss as error:
        last = folder and folder.last
        kept = f"the last good checkpoint is {last}" if last and last.exists() else "no checkpoint was written yet"
        raise Failed(f"training diverged: {error}; {kept}; try a smaller rate or trainer.clip_norm") from error
    progress = session.state.progress
    if progress.stopped:
        where = f"stopped by {progress.stopped} at step {progress.step}, saved"
        raise Stopped(f"{where}; continue with: metarun resume {folder and folder.path}")
    return progress


@dataclass
class Session:
    """A training from the state of the last checkpoint on, with what it validates and saves."""

    experiment: Experiment
    folder: RunFolder | None  # None: another rank than 0, which writes nothing
    about: dict[str, Any]  # facts of the run for its checkpoints
    ranks: Ranks
    state: State

    def __post_init__(self) -> None:
        trainer, progress = self.experiment.settings.trainer, self.state.progress
        plan = progress.plan or self.ranks.broadcast(self.folder and self.folder.plan())
        if not self.experiment.learns:
            plan = Plan("vmap", None).to_json()
        self.headline = headline_metric(self.experiment.source.spec)
        self.sign = 1 if metric(self.headline).higher_is_better else -1  # scores are compared by "more is better"
        self.tester = self.experiment.build_tester(self.experiment.plan_rows()["test"], "val")
        recording = choose_recording(trainer, self.experiment.device, self.state.optimizer, self.ranks)
        self.meta_gradient = MetaGradient(
            self.experiment.algo, trainer, self.ranks, Plan(**plan) if plan else None, recording
        )
        self.statistics = functools.lru_cache(maxsize=1)(
            lambda step: self.experiment.measure_statistics(self.state.theta)
        )

    def train(self) -> None:
        """Train to the last step. Raises NonFiniteLoss."""
        experiment, state, trainer = self.experiment, self.state, self.experiment.settings.trainer
        tasks_of, progress, recording = prepare_tasks(experiment), state.progress, self.meta_gradient.recording
        schedule = build("schedule", experiment.settings.schedule)
        log = open_log(experiment.settings, self.folder, self.about, progress.step)
        try:
            if not experiment.learns:
                self.keep_untrained(log)
                return
            started = time.perf_counter()
            draw = functools.partial(tasks_of, progress.step)
            self.meta_gradient.choose_plan(state.theta, draw, experiment.pixels)
            progress.seconds += time.perf_counter() - started
            if self.folder:
                self.folder.keep_plan(self.meta_gradient.plan.to_json())
                self.tell_duration()
            train(
                state,
                tasks_of,
                self.meta_gradient,
                lambda step: schedule.factor(step, trainer.steps),
                trainer,
                validate=self.validate,
                save=self.save,
                log=log,
                carried=traits_of(experiment.algo).carried,
                capture=functools.partial(capture_step, state=state) if recording == "step" else run_eagerly,
                capture_descent=(
                    functools.partial(capture_descent, state=state) if recording == "halves" else run_eagerly
                ),
                ranks=self.ranks,
            )
        finally:
            log.close()

    def tell_duration(self) -> None:
        """Say how long the steps will take, if they were timed."""
        plan, steps = self.meta_gradient.plan, self.experiment.settings.trainer.steps - self.state.progress.step
        if (seconds := (plan.seconds or {}).get(plan.name)) and steps > 0:
            told = format_duration(steps * seconds)
            say.info("%s in about %s, validations not counted", count(steps, "step"), told)

    def keep_untrained(self, log: Log) -> None:
        """Validate and save a model that has nothing to learn, as that of step 0."""
        score, scores = self.validate()
        log.metrics(0, "val", scores)
        for name in (*self.state.progress.rank(score, self.experiment.settings.trainer.keep_best), "last"):
            self.save(name)

    def validate(self) -> tuple[float, dict[str, Any]]:
        """Score the weights on the validation tasks: a score, of which more is better, and what to log."""
        model = Model(self.state.theta, self.statistics(self.state.progress.step))
        tasks, execution = self.experiment.settings.eval.val_tasks, self.meta_gradient.plan.execution
        summary = self.tester.score([model], tasks, execution, self.ranks).summarise()
        means = {name: value["mean"] for name, value in summary.items()}
        found = means[self.headline]
        score = found if math.isfinite(found) else metric(self.headline).worst  # so that a later one can be better
        return self.sign * score, means | {"ci95": summary[self.headline]["ci95"]}

    def save(self, name: str) -> None:
        """Write a checkpoint: everything that a continued run or a test needs."""
        if self.folder is None:
            return
        state, progress = self.state, self.state.progress
        progress.plan = self.meta_gradient.plan.to_json()
        tensors = {
            "theta": state.theta,
            "optimizer": state.optimizer.state_dict(),
            "statistics": self.statistics(progress.step),
            "buffers": dict(self.experiment.backbone.named_buffers()),  # constants of the network, for `metarun.load`
            "window": asdict(state.window),
        }
        validation = None if progress.best is None else self.sign * progress.best
        spec = self.experiment.source.spec._replace(world=None, rule=None)
        facts = {
            "step": progress.step,
            "validation": validation,
            "progress": asdict(progress),
            "spec": spec._asdict(),  # this and the next let a model do without its dataset
            "preprocessing": self.experiment.dataset.preprocessing(),
        }
        checkpoint.save(self.folder.checkpoint(name), tensors, self.about | facts)
        if self.experiment.settings.trainer.keep_best > 1:
            self.folder.keep_leaders([step for _, step in progress.leaders])


def prepare_tasks(experiment: Experiment) -> Callable[[int], Task]:
    """Return a function from a step to its tasks, which the step's number alone determines.

    Pictures that are not in the device's memory are fetched while the step before runs.
    """
    settings, source, device = experiment.settings, experiment.source, experiment.device

    def tasks_of(step: int) -> Task:
        generator = generator_for(settings.seed, "train", step, device=device)
        tasks: Task = source.sample(settings.trainer.tasks_per_step, generator)
        return tasks

    return Prefetch(tasks_of, device) if needs_copies(source, device) else tasks_of


def open_log(settings: Settings, folder: RunFolder | None, about: dict[str, Any], step: int) -> Log:
    """Return the log of a run's folder, continued after `step`; a silent one without a folder."""
    if folder is None:
        return Silence()
    logger: Logger = build("logger", settings.logger)
    logger.open(folder.path, about["config"])
    return RunLog(folder.path, logger, step)


def restore_state(experiment: Experiment, folder: RunFolder | None, ranks: Ranks) -> State:
    """Return the state of the last checkpoint, or a new one, drawn or with given weights; the same on every rank."""
    if not ranks.broadcast(folder is not None and folder.last.exists()):
        theta, start = experiment.draw_theta(), experiment.settings.init_from
        if start is not None:
            theta = experiment.make_trainable(load_checkpoint(experiment, Path(start), ranks)[0]["theta"])
        elif ranks.count > 1:
            theta = experiment.make_trainable(ranks.broadcast(tree_map(lambda p: p.detach().cpu(), theta)))
        return State(theta, experiment.build_optimizer(theta))
    tensors, facts = load_checkpoint(experiment, folder.last if folder else None, ranks)
    theta = experiment.make_trainable(tensors["theta"])
    optimizer = experiment.build_optimizer(theta)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": tensors["optimizer"]["state"]})
    state = State(theta, optimizer, Progress(**facts["progress"]), Window(**tensors["window"]))
    if state.progress.step < experiment.settings.trainer.steps:
        say.info("continuing at step %d", state.progress.step)
    return state


def load_checkpoint(experiment: Experiment, path: Path | None, ranks: Ranks) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the tensors, on the device, and the facts of a checkpoint that rank 0 reads.

    Raises ConfigError if it belongs to another model.
    """

    tensors, facts = ranks.broadcast(checkpoint.load(path) if path else ({}, {}))
    check_shapes(experiment, path, tensors.get("theta", {}))
    return tree_map(lambda value: value.to(experiment.device) if isinstance(value, Tensor) else value, tensors), facts


def load_models(
    experiment: Experiment, folder: RunFolder | None, ranks: Ranks
) -> tuple[list[Model], list[dict[str, Any]]]:
    """Return the model that `eval.checkpoint` names, or each of an ensemble, and the facts of their checkpoints.

    Raises ConfigError.
    """
    name = experiment.settings.eval.checkpoint
    paths: list[Path] = []
    if folder:
        paths = folder.leaders() if name == "ensemble" else [folder.checkpoint(name)]
    count = ranks.broadcast(len(paths))
    if count == 0:
        raise ConfigError("eval.checkpoint is ensemble: there are no checkpoints best-STEP.pt")
    models, facts = [], []
    for i in range(count):
        tensors, about = load_checkpoint(experiment, paths[i] if folder else None, ranks)
        known = "variance" in tensors["statistics"]  # what checkpoints of earlier versions, and of other tests, lack
        measured = {} if known else experiment.measure_statistics(tensors["theta"])
        models.append(Model(tensors["theta"], {**measured, **tensors["statistics"]}))
        facts.append(about)
    return models, facts


def check_ensemble(experiment: Experiment) -> None:
    """Raise ConfigError if an ensemble is asked for and cannot be."""
    settings = experiment.settings
    if settings.eval.checkpoint != "ensemble":
        return
    if settings.trainer.keep_best == 1:
        raise ConfigError("eval.checkpoint is ensemble: trainer.keep_best is 1, and must be at least 2 in training")
    if experiment.source.spec.kind != "classification":
        raise ConfigError("eval.checkpoint is ensemble: it averages class probabilities, and this is regression")


def measure_classes(scores: Scores, classes: Tensor | None, headline: str) -> dict[str, Any]:
    """Return how many classes or assays the tasks have, and the interval over the draw of these."""
    if classes is None:
        return {}
    found = over_classes(scores.per_task[headline].double().numpy(), classes.numpy())
    return {"classes" if classes.shape[1] > 1 else "assays": len(classes.unique()), "ci95_over_classes": found}


def measure_chance(scores: Scores, headline: str, ways: int) -> float | None:
    """The share of tasks whose figure is no better than guessing; None if there is no such figure."""
    guessed = metric(headline).guessed(ways)
    if guessed is None:
        return None
    return float((scores.per_task[headline].double() <= guessed + ROUNDING).double().mean())


def count_pairs(scores: Scores, classes: Tensor | None) -> Pairs | None:
    """Which classes were taken for which; None where tasks have none in common."""
    answers = scores.per_task.get(ANSWERS)
    if answers is None or classes is None or classes.shape != answers.shape[:2]:
        return None
    return Pairs.count(answers.double().numpy(), classes.numpy())


def plan_tests(experiment: Experiment, models: list[Model]) -> Iterator[tuple[str, Tester, list[Model]]]:
    """Yield each row's name, what tests it, and the models. The last rows have the weights that no training has
    changed, unless the method has none, and the baselines of the data.
    """
    rows, theta = experiment.plan_rows(), experiment.draw_theta()
    for name, row in rows.items():
        yield name, experiment.build_tester(row, "test"), models
    few = replace(rows["test"], tasks=min(rows["test"].tasks, FEW_TASKS))
    if any(theta.values()):
        yield UNTRAINED, experiment.build_tester(few, "test"), [Model(theta, experiment.measure_statistics(theta))]
    baselines = Baselines(experiment, few)
    for name in list_baselines(experiment, few):
        try:
            yield name, baselines.build_tester(name), [Model({}, {})]
        except ConfigError as reason:
            say.info("no row %s: %s", name, reason)


def score_rows(
    experiment: Experiment, models: list[Model], plan: Plan, folder: RunFolder | None, ranks: Ranks
) -> dict[str, Row]:
    """Test the models on every row of the result; untrained weights and baselines on some tasks of the first.

    Writes the scores into the folder, if there is one. Tasks are executed as in training. Several models are tested as
    an ensemble, and its rows say so. An inductive row that differs from another in how queries are read alone is
    measured with it, after the same adaptation, and has no `seconds` of its own.
    """
    rows, measured = {}, dict[str, Scores]()
    planned = experiment.plan_rows()
    for name, tester, members in plan_tests(experiment, models):
        row, inductive = tester.row, f"{name}_inductive"
        scores, seconds = measured.get(name, NOTHING), None
        if not scores.tasks:
            twice = inductive in planned and planned[inductive].algo == {**row.algo, "norm": "per_query"}
            both, seconds = score_row(experiment, tester, name, members, plan, folder, ranks, twice)
            scores, measured[inductive] = both.part(ONE_BY_ONE, False), both.part(ONE_BY_ONE, True)
        pairs = count_pairs(scores, classes := tester.draw_classes(row.tasks))
        if folder:
            write_scores(folder.path / "scores" / f"{name}.csv", scores, classes)
        if folder and pairs:
            pairs.write(folder.path / "scores" / f"{name}_classes.csv", tester.names)
        facts = {
            "transductive": is_transductive(row, experiment.has_norm),
            "ensemble": len(members),
            "seconds": seconds,
        }
        rows[name] = describe_row(tester, scores, classes, pairs, **facts)
    if folder:
        draw_vectors(folder.path / "scores", rows)
        for best in declaration("dataset", experiment.settings.dataset["name"]).traits.rules[:1]:
            draw_regret(folder.path / "scores", rows, best)
    return rows


def score_row(
    experiment: Experiment,
    tester: Tester,
    name: str,
    models: list[Model],
    plan: Plan,
    folder: RunFolder | None,
    ranks: Ranks,
    twice: bool,
) -> tuple[Scores, float]:
    """Return the scores of a row and the seconds they took. A test that was stopped goes on after the tasks that its
    draft holds.
    """
    draft = Draft(folder.draft(name), make_key(tester, models, plan, experiment.device, twice)) if folder else None
    done, before = ranks.broadcast(draft.read() if draft else (NOTHING, 0.0))
    started = time.perf_counter() - before
    if folder:
        tested = f"{name} and {name}_inductive" if twice else name
        say.info("testing %s: %s", tested, count(tester.row.tasks, "task"))
    keep = draft.follow(started) if draft else forget
    execution = "loop" if name in BASELINES else plan.execution  # a forest is grown outside of PyTorch
    scores = tester.score(models, tester.row.tasks, execution, ranks, done, keep, twice)
    return scores, round(time.perf_counter() - started, 1)


def describe_row(tester: Tester, scores: Scores, classes: Tensor | None, pairs: Pairs | None, **facts: Any) -> Row:
    """Return what the scores say, beside the settings of the row and further facts about it."""
    row, headline = tester.row, headline_metric(tester.source.spec)
    hardest, confused = pairs.list_hardest(tester.names) if pairs else ([], [])
    return Row(
        metrics={metric: Estimate(**values) for metric, values in scores.summarise().items()},
        ways=row.ways,
        shots=row.shots,
        queries=row.queries,
        tasks=scores.tasks,
        task_hash=scores.task_hash,
        algo=row.algo,
        **facts,
        **measure_classes(scores, classes, headline),
        at_chance=measure_chance(scores, headline, row.ways),
        hardest=hardest,
        confused=confused,
        dataset=row.dataset,
        split=row.split,
        data=tester.dataset.identity() if row.dataset else None,
    )


def measure_doubt(experiment: Experiment, models: list[Model], plan: Plan, ranks: Ranks) -> Doubt:
    """Measure what a single model's scores are worth, as `metarun predict` adapts it: fit a temperature and sets of
    answers on the validation tasks, and look at both, and at queries of unknown classes, on as many test tasks.
    """
    rows = experiment.plan_rows()
    row = rows.get("test_inductive", rows["test"])
    row = replace(row, tasks=min(row.tasks, experiment.settings.eval.val_tasks))
    validation = replace(row, tasks=experiment.settings.eval.val_tasks)
    fitted = collect_answers(experiment.build_tester(validation, "val"), models, plan.execution, ranks)
    temperature = fitted and fit_temperature(fitted)
    if fitted is None or temperature is None:
        return Doubt()
    tester = experiment.build_tester(row, "test")
    answers, sets, unknown = collect_answers(tester, models, plan.execution, ranks), None, None
    if answers:
        threshold, classes = fit_threshold(fitted, temperature), tester.draw_classes(row.tasks)
        held, size = measure_sets(answers, temperature, threshold)
        over = None if classes is None else over_classes(held.numpy(), classes[: len(held)].numpy())
        sets = Sets(threshold, *estimate(held), over, float(size.mean()), len(held))
    if (opened := open_tasks(tester)) and (answers := collect_answers(opened, models, plan.execution, ranks)):
        found, more = measure_unknown(answers), len(answers.y[0].unique()) - row.ways
        unknown = Unknown(*estimate(found), more, len(found))
    return Doubt(temperature, sets, unknown)


def estimate(scores: Tensor) -> tuple[float, float | None]:
    """The mean over tasks [T], and half its interval."""
    half = over_tasks(scores.numpy())
    return float(scores.mean()), None if half is None else float(half)
