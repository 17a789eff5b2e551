"""One sitting of a training: restore its state, and train from there on."""

import functools
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_map

from metarun.config.errors import Failed, Stopped
from metarun.config.registry import build, metric, traits_of
from metarun.config.schema import Settings
from metarun.config.words import count, format_duration
from metarun.core.objectives import headline_metric
from metarun.core.seeding import generator_for
from metarun.core.types import Task
from metarun.engine import checkpoint
from metarun.engine.build import Experiment
from metarun.engine.capture import capture_descent, capture_step, choose_recording
from metarun.engine.distributed import Ranks
from metarun.engine.evaluate import Model
from metarun.engine.loop import run_eagerly, train
from metarun.engine.plan import MetaGradient, Plan
from metarun.engine.prefetch import Prefetch, needs_copies
from metarun.engine.state import Log, NonFiniteLoss, Progress, Silence, State, Window
from metarun.runs.folder import RunFolder
from metarun.runs.log import RunLog, say
from metarun.runs.loggers import Logger
from metarun.runs.weights import check_shapes


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
            self.experiment.objective, trainer, self.ranks, Plan(**plan) if plan else None, recording
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
