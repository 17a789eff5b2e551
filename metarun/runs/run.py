"""A run in its folder: trained, tested, reported; continued where it stopped, or tested again."""

import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from metarun.config.errors import ConfigError, Failed, explain_shortage
from metarun.config.load import is_published, suggest_encoder
from metarun.config.registry import lookup
from metarun.config.schema import Settings
from metarun.config.words import printable
from metarun.core.machine import STARTED, device_name, find_commit, find_versions, peak_memory_mib
from metarun.core.objectives import headline_metric
from metarun.core.seeding import generator_for
from metarun.core.types import Dataset
from metarun.engine.build import Experiment, build_dataset
from metarun.engine.checkpoint import load
from metarun.engine.distributed import ALONE, Ranks, count_workers, is_lost
from metarun.engine.plan import Plan, is_out_of_memory
from metarun.engine.process import launcher_rank
from metarun.probes.probe import Subject
from metarun.probes.runner import Planned, describe, plan_probes, run_probe
from metarun.runs.artifacts import describe_result, describe_start, draw_curves
from metarun.runs.folder import RunFolder
from metarun.runs.log import log_to, say, speak
from metarun.runs.result import Checkpoint, Evaluation, Result, Training, Validation
from metarun.runs.scoring import check_ensemble, load_models, score_models
from metarun.runs.session import train_run
from metarun.runs.warnings import find_warnings, read_last_loss
from metarun.runs.weights import OTHER_RUN, check_files, check_weights, hash_files
from metarun.runs.worker import follow, start_workers

SHOWN = 60  # characters of a value in a message, which a hash exceeds
LONGEST = 120  # bytes of a folder's name: file systems allow 255


@speak()
def prepare(settings: Settings, folder: RunFolder) -> Experiment | None:
    """Build the components of a run; None if it is finished. Writes nothing.

    Raises ConfigError for all that can be known to fail now instead of after the training, and for other data than the
    run in the folder has read.
    """
    if (result := folder.result()) is not None:
        if "path" in settings.dataset and not is_published(settings.dataset):
            check_own_data(folder, result.dataset, settings)
        check_files(settings, folder, result.files)
        return None
    experiment = Experiment.build(settings)
    if folder.last.is_file():
        facts = load(folder.last)[1]
        check_data(folder, facts["dataset"], experiment.dataset, OTHER_RUN)
        check_files(settings, folder, facts.get("files", {}))
    if settings.eval.probes:
        plan_probes(settings.eval.probes, experiment)
    for row in experiment.plan_rows().values():
        for split in ("val", "test"):
            experiment.build_tester(row, split)
    experiment.build_optimizer(experiment.draw_theta())
    count_workers(settings.trainer.workers, settings.trainer.tasks_per_step, experiment.device)
    check_ensemble(experiment)
    check_weights(experiment, folder)
    return experiment


def check_own_data(folder: RunFolder, recorded: Mapping[str, Any], settings: Settings) -> None:
    """Raise ConfigError if the data of a finished run is there and is not what it has read."""
    dataset = build_dataset(settings)
    try:
        dataset.prepare()
    except ConfigError:  # the result stays true when the data is gone
        return
    check_data(folder, recorded, dataset, OTHER_RUN)


def check_data(folder: RunFolder, recorded: Mapping[str, Any], dataset: Dataset, otherwise: str) -> None:
    """Raise ConfigError if the dataset's content is not what the run in the folder has read. otherwise: how to use it
    all the same.
    """
    found = json.loads(json.dumps(dataset.identity()))
    differing = [key for key in recorded if key in found and found[key] != recorded[key]]
    if differing:
        key = differing[0]
        before, now = (shorten(str(values[key])) for values in (recorded, found))
        raise ConfigError(
            f"{folder.path} has read other data than dataset={found.get('name')} holds now "
            f"({key} was {before}, is {now}): "
            f"put the first data back, or {otherwise}"
        )


def shorten(text: str) -> str:
    """A value for a message: of a long one, for instance a hash, the beginning and three dots."""
    return text if len(text) <= SHOWN else f"{text[:12]}..."


@speak()
def run(
    settings: Settings,
    folder: RunFolder,
    config: dict[str, Any],
    choices: dict[str, Any],
    experiment: Experiment | None = None,
) -> float:
    """Train, test and report; continue where an earlier sitting stopped. Returns the best validation score.

    `experiment` is what `prepare` returned, if it was called. Raises ConfigError for a user's mistake, Stopped after
    a signal, Failed if the training diverged or the machine ran out of something.
    """
    experiment = experiment or prepare(settings, folder)
    if launcher_rank():
        if experiment is not None:
            with start_workers(experiment, config, "train") as ranks:
                follow(settings, ranks, "train")
        return math.nan
    with folder.lock(), folder.start(config, choices), explain_failures(folder, "the last checkpoint"):
        handler = log_to(folder.path)
        try:
            if (result := folder.result()) is None:
                experiment = experiment or Experiment.build(settings)
                with start_workers(experiment, config, "train") as ranks:
                    result = train_and_test(experiment, folder, config, ranks)
            else:
                say.info("%s is finished already", folder.path)
            folder.forget_drafts()
            for line in describe_result(result):
                say.info(line)
            places = ["result.json", "curves.png", "metrics.csv", "scores/", "checkpoints/"]
            say.info("in %s: %s", folder.path, ", ".join(places + lookup("logger", settings.logger["name"]).places))
            return result.validation.best if result.validation and result.validation.best is not None else math.nan
        finally:
            say.removeHandler(handler)
            handler.close()


@contextmanager
def explain_failures(folder: RunFolder, saved: str) -> Iterator[None]:
    """Raise Failed instead of an error that the machine or another process caused. saved: what is gone on from."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        if reason := explain_failure(error):
            raise Failed(f"{folder.path}: {reason}; the same command goes on from {saved}") from error
        raise


def explain_failure(error: Exception) -> str | None:
    """Return what the machine ran out of, or who left, in words; None for any other error."""
    if is_out_of_memory(error):
        return "out of memory: smaller tasks_per_chunk, of trainer and eval, need less for the same numbers"
    if reason := explain_shortage(error):
        return reason
    if is_lost(error):
        return "another of this run's processes ended before its time"
    return None


def train_and_test(experiment: Experiment, folder: RunFolder, config: dict[str, Any], ranks: Ranks) -> Result:
    """Train from the last checkpoint on, test, and write the result with its curves."""
    settings = experiment.settings
    about: dict[str, Any] = {
        "config": config,
        "choices": folder.choices(),
        "dataset": experiment.dataset.identity(),
        "files": hash_files(settings, folder),
        "device": device_name(experiment.device),
        "versions": find_versions(),
        "commit": find_commit(),
    }
    for line in describe_start(experiment, about["dataset"], about["device"]):
        say.info(line)
    notes = experiment.dataset.notes()
    for note in notes:
        say.info("note: %s", note)
    if hint := suggest_encoder(settings):
        say.info("%s", hint)
    say.info("in %s", folder.path)
    progress = train_run(experiment, folder, about, ranks)
    models, facts = load_models(experiment, folder, ranks)
    plan = Plan(**facts[-1]["progress"]["plan"])
    rows, doubt = score_models(experiment, models, plan, folder, ranks)
    headline = headline_metric(experiment.source.spec)
    result = Result(
        temperature=doubt.temperature,
        sets=doubt.sets,
        unknown=doubt.unknown,
        headline=headline,
        kind=experiment.source.spec.kind,
        rows=rows,
        checkpoint=checkpoint_of(settings.eval.checkpoint, facts),
        warnings=find_warnings(rows, headline, read_last_loss(folder.path), find_scale(experiment)),
        notes=notes,
        validation=Validation(facts[-1]["validation"], progress.best_step, settings.eval.val_tasks),
        training=Training(
            steps=progress.step,
            seconds=round(progress.seconds, 1),
            tasks_per_second=round(progress.step * settings.trainer.tasks_per_step / (progress.seconds or 1), 1),
            peak_memory_mib=peak_memory_mib(experiment.device),
            workers=ranks.count,
            plan=progress.plan,
        ),
        wall_seconds=round(time.perf_counter() - STARTED, 1),
        **about,
    )
    if settings.eval.probes:
        subject = Subject(experiment, models[0], plan.execution, result.temperature)
        for probe in plan_probes(settings.eval.probes, experiment):
            say.info("probing %s", probe.name)
            keep_finding(probe, subject, folder.path / "probes")
    draw_curves(folder.path, result.headline)
    folder.finish(result)  # last: what has a result is finished
    return result


def keep_finding(probe: Planned, subject: Subject, folder: Path) -> None:
    """Run a probe at a run's end and log what it finds, or why it cannot look at this model: the run is whole then."""
    try:
        lines = describe(probe.name, run_probe(probe, subject, folder))
    except ConfigError as error:
        lines = iter([f"probe {probe.name} is left out: {error}"])
    for line in lines:
        say.info(line)


@speak()
def probe_again(
    settings: Settings,
    folder: RunFolder,
    names: Sequence[str],
    changes: list[str],
    own: Mapping[str, Mapping[str, Any]],
) -> None:
    """Look at a run's checkpoint by probes: by these, or without names by all that can.

    changes: the settings that differ from the run's, in words; what is found goes to `probes/`, or with changes below
    `tests/`. own: those of the probes. Raises ConfigError if a probe that was asked for cannot look at this model.
    """
    result = folder.result()
    experiment = Experiment.build(settings)
    probes = plan_probes(names, experiment, own)
    models, facts = load_models(experiment, folder, ALONE)
    if len(models) > 1:
        raise ConfigError("eval.checkpoint is ensemble: a probe looks at one model, give best, last or best-STEP")
    subject = Subject(
        experiment,
        models[0],
        Plan(**facts[-1]["progress"]["plan"]).execution,
        result.temperature if result and result.checkpoint.name == settings.eval.checkpoint else None,
    )
    beside = RunFolder(folder.path / "tests" / name_test(changes)) if changes else folder
    with beside.lock(), explain_failures(folder, "the beginning"):
        for probe in probes:
            try:
                found = run_probe(probe, subject, beside.path / "probes")
            except ConfigError as error:
                if names:
                    raise
                print(printable(f"{probe.name}: left out, {error}"))
                continue
            print(*map(printable, describe(probe.name, found)), sep="\n", flush=True)
    print(printable(f"in {beside.path / 'probes'}"))


@speak()
def test_again(settings: Settings, folder: RunFolder, config: dict[str, Any], changes: list[str]) -> None:
    """Test a run's checkpoint as `settings.eval` says; the result goes beside the run's own, under `tests/`.

    changes: the settings that differ from the run's, as `eval.ways=20`. Raises ConfigError, among other reasons if the
    data is not what the run has read and no setting of the dataset was changed.
    """
    result = folder.result()
    if result and not any(change.startswith("eval.checkpoint=") for change in changes):
        tested = {name: digest for name, digest in result.files.items() if name == "eval.checkpoint"}
        check_files(settings, folder, tested, "name the one to test by checkpoint=...")
    experiment = Experiment.build(settings)
    check_ensemble(experiment)
    testers = {name: experiment.build_tester(row, "test") for name, row in experiment.plan_rows().items()}
    if launcher_rank():
        with start_workers(experiment, config, "test") as ranks:
            follow(settings, ranks, "test")
        return
    beside = RunFolder(folder.path / "tests" / name_test(changes))
    spec, name = experiment.source.spec, str(folder.checkpoint(settings.eval.checkpoint))
    with explain_failures(beside, "what is scored"), start_workers(experiment, config, "test") as ranks:
        models, facts = load_models(experiment, folder, ranks)
        if not any(change.startswith("dataset.") for change in changes):
            check_data(folder, facts[-1]["dataset"], experiment.dataset, "name what to test on by dataset.path=...")
        with beside.lock():
            rows, doubt = score_models(experiment, models, Plan(**facts[-1]["progress"]["plan"]), beside, ranks)
            headline = headline_metric(spec)
            test = Evaluation(
                temperature=doubt.temperature,
                sets=doubt.sets,
                unknown=doubt.unknown,
                headline=headline,
                kind=spec.kind,
                rows=rows,
                checkpoint=checkpoint_of(name, facts),
                dataset=experiment.dataset.identity(),
                warnings=find_warnings(rows, headline, None, find_scale(experiment)),
                notes=testers["test"].dataset.notes(),
            )
            beside.finish(test)
            beside.forget_drafts()
    if result is None:
        print(f"{folder.path} is not finished: this tests its checkpoint of step {facts[-1]['step']}")
    print(*map(printable, describe_result(test)), f"in {beside.path}", sep="\n")


def name_test(changes: Sequence[str]) -> str:
    """The folder's name of a test with these settings: the settings themselves, unless that is too long."""
    name = "-".join(change.removeprefix("eval.") for change in changes).replace("/", "_") or "again"
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return name if len(name.encode()) <= LONGEST else f"{name[:40]}-{digest}"


def find_scale(experiment: Experiment) -> float:
    """In regression the mean square of the targets of one step's tasks, which is the error of predicting 0; else 1."""
    if experiment.source.spec.kind != "regression":
        return 1.0
    settings = experiment.settings
    generator = generator_for(settings.seed, "train", 0, device=experiment.device)
    return float(experiment.source.sample(settings.trainer.tasks_per_step, generator).query.y.square().nanmean())


def checkpoint_of(name: str, facts: list[dict[str, Any]]) -> Checkpoint:
    """Return the tested checkpoint with its step, or the steps of an ensemble's."""
    steps = [fact["step"] for fact in facts]
    return Checkpoint(name, steps if len(steps) > 1 else steps[0])
