"""The sub-commands: all that is done with runs and data sets besides training."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from metarun.cli.compose import changed, compose, described_options
from metarun.cli.reproduce import SMOKE, experiments, outlook, request
from metarun.cli.sweep import sweep, sweep_jobs
from metarun.config.load import load_settings, plain
from metarun.runs.folder import RunFolder


def resume() -> None:
    """Continue a run that was stopped, exactly where its last checkpoint is."""
    parser = argparse.ArgumentParser(prog="metarun resume", description=resume.__doc__)
    parser.add_argument("run", type=Path, help="the run's folder, under outputs/")
    folder = RunFolder(parser.parse_args().run.absolute())
    values, choices = folder.config(), folder.choices()
    settings = load_settings(values)
    from metarun.runs.run import run

    run(settings, folder, values, choices)


def evaluate() -> None:
    """Test a finished run again, with the same or other settings.

    Settings are those of eval (ways=20, shots=5, tasks=5000, checkpoint=last, algo.inner_steps=10), and device,
    data_dir, dataset.path, dataset.placement and dataset.test_tasks. Without any, the run's own test is repeated.
    """
    parser = argparse.ArgumentParser(prog="metarun evaluate", description=evaluate.__doc__)
    parser.add_argument("run", type=Path, help="the run's folder, under outputs/")
    parser.add_argument("overrides", nargs="*", default=[], help="settings that differ, as ways=20")
    arguments = parser.parse_args()
    folder = RunFolder(arguments.run.absolute())
    elsewhere = ("eval.", "device=", "data_dir=", "dataset.path=", "dataset.placement=", "dataset.test_tasks=")
    changes = [text if text.startswith(elsewhere) else f"eval.{text}" for text in arguments.overrides]
    config = changed(folder.config(), changes)
    settings = load_settings(config)
    from metarun.runs.run import retest

    retest(settings, folder, config, arguments.overrides)


def data() -> None:
    """Fetch, verify and prepare a dataset; say what is there and what is missing."""
    parser = argparse.ArgumentParser(prog="metarun data", description=data.__doc__)
    parser.add_argument("name", help="a dataset, as metarun list shows them")
    parser.add_argument("overrides", nargs="*", default=[], help="settings, as dataset.path=/data or data_dir=/data")
    parser.add_argument("--check", action="store_true", help="only look, fetch and prepare nothing")
    parser.add_argument("--preview", type=Path, metavar="PNG", help="a file for a picture of some tasks")
    arguments = parser.parse_args()
    config = compose([f"dataset={arguments.name}", *arguments.overrides])
    settings = load_settings(plain(config))
    from metarun.engine.build import dataset_of

    dataset = dataset_of(settings)
    if not arguments.check:
        dataset.prepare()
    print(dataset.describe())
    if arguments.preview:
        from metarun.analysis.preview import draw
        from metarun.core.types import TaskShape

        draw(dataset, TaskShape(settings.ways, settings.shots, settings.queries), arguments.preview)
        print(f"some tasks of {settings.ways} ways and {settings.shots} shots: {arguments.preview}")


def profile() -> None:
    """Show where the time of a training step goes, with the same settings as a run's."""
    parser = argparse.ArgumentParser(prog="metarun profile", description=profile.__doc__)
    parser.add_argument("overrides", nargs="*", default=[], help="settings, as algo=maml dataset=omniglot device=cuda")
    parser.add_argument("--config-dir", help="a folder with YAML files of your own")
    arguments = parser.parse_args()
    config = compose(arguments.overrides, arguments.config_dir)
    settings = load_settings(plain(config))
    from metarun.analysis.profile import profile as profiled

    print(*profiled(settings), sep="\n")


def explain() -> None:
    """Draw what a run has learned besides weights: a loss beside the usual one, rates by layer and step.

    Drawings and the numbers behind them go to the run's folder, under explained/.
    """
    parser = argparse.ArgumentParser(prog="metarun explain", description=explain.__doc__)
    parser.add_argument("run", type=Path, help="the run's folder, under outputs/")
    folder = RunFolder(parser.parse_args().run.absolute())
    settings = load_settings(folder.config() | {"device": "cpu"})  # it is little work
    from metarun.analysis.explain import explained
    from metarun.engine.build import Experiment

    print(*explained(Experiment.of(settings), folder), sep="\n")


def report() -> None:
    """Write finished runs beside the published figures: report.html, report.md, report.csv and report.tex."""
    parser = argparse.ArgumentParser(prog="metarun report", description=report.__doc__)
    parser.add_argument("runs", nargs="*", type=Path, default=[Path("outputs")], help="folders with runs; outputs")
    parser.add_argument("--to", type=Path, default=Path("report"), help="the folder for the report; report")
    arguments = parser.parse_args()
    from metarun.reports import written

    print(*written(arguments.runs, arguments.to), sep="\n")


def reproduce() -> None:
    """Run what is missing of a paper's table, and report.

    The table is a dataset's: omniglot, miniimagenet, sinusoid; its cells are the experiments on it. Any time a command
    was stopped, the same command goes on.
    """
    parser = argparse.ArgumentParser(prog="metarun reproduce", description=reproduce.__doc__)
    parser.add_argument("table", help="omniglot, miniimagenet, sinusoid, ...")
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        help="length=short (for two CPU cores; or paper, smoke), cells=maml/*,protonet/*, and settings for all runs",
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be run, and for how long")
    parser.add_argument("--to", type=Path, help="the folder for the report; report/TABLE-LENGTH")
    arguments = parser.parse_args()
    length, cells, overrides = request(arguments.overrides)
    chosen = experiments(arguments.table, length, cells)
    overrides = [f"experiment={','.join(chosen)}", *(SMOKE if length == "smoke" else ()), *overrides]
    jobs, _ = sweep_jobs(overrides)
    print(*outlook(jobs), sep="\n")
    if arguments.dry_run:
        return
    sys.argv = ["metarun", "--multirun", *overrides]
    try:
        sweep(overrides, None, "config")
    finally:
        from metarun.reports import written

        if finished := [folder for folder in jobs if RunFolder(folder).result() is not None]:
            print(*written(finished, arguments.to or Path("report") / f"{arguments.table}-{length}"), sep="\n")


def list_all() -> None:
    """Show the algorithms, datasets, backbones and experiments there are, one line each."""
    parser = argparse.ArgumentParser(prog="metarun list", description=list_all.__doc__)
    parser.add_argument("group", nargs="?", choices=["algo", "dataset", "backbone", "experiment"])
    chosen = parser.parse_args().group
    for group in [chosen] if chosen else ["algo", "dataset", "backbone", "experiment"]:
        described = described_options(group)
        width = max(28, *(len(option) + 2 for option in described))
        print(f"{group}=")
        for option, line in described.items():
            print(f"  {option:{width}}{line}")


COMMANDS: dict[str, Callable[[], None]] = {
    "list": list_all,
    "resume": resume,
    "evaluate": evaluate,
    "data": data,
    "profile": profile,
    "explain": explain,
    "report": report,
    "reproduce": reproduce,
}
