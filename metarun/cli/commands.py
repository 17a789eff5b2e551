"""The sub-commands: one function each, which gets the words after its name.

A new command is a function with a docstring whose first line `metarun --help` shows, and an entry in COMMANDS.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from metarun.cli import reproduce as table
from metarun.cli.compose import compose
from metarun.cli.hydra_app import Request
from metarun.cli.overview import write_group, write_overview
from metarun.cli.parser import Parser, check_file
from metarun.cli.plain import NONE
from metarun.cli.predict import embed, export, predict
from metarun.cli.retest import evaluate, probe
from metarun.cli.sweep import plan, sweep
from metarun.config.errors import ConfigError, Failed
from metarun.config.load import load_settings, resolve
from metarun.config.registry import LISTED
from metarun.config.words import count, printable
from metarun.runs.folder import RunFolder, check_writable


def resume(words: Sequence[str]) -> None:
    """Continue a run from its last checkpoint."""
    parser = Parser("resume", resume)
    parser.add_argument("run", type=Path, help="the folder of the run, below outputs/")
    folder = RunFolder(parser.read(words).run.absolute())
    settings, values, choices = folder.settings(), folder.config(), folder.choices()
    from metarun.runs.run import run

    run(settings, folder, values, choices)


def data(words: Sequence[str]) -> None:
    """Fetch, verify and prepare a dataset; show what it holds."""
    parser = Parser("data", data)
    parser.add_argument("name", help="a dataset of metarun list")
    parser.add_argument("overrides", nargs="*", default=[], help="settings, for example dataset.path=/data")
    parser.add_argument("--check", action="store_true", help="only show what is there; fetch and prepare nothing")
    parser.add_argument("--preview", type=Path, metavar="PNG", help="draw a few tasks into this file")
    arguments = parser.read(words)
    check_file("--preview", arguments.preview, ".png")
    if "=" in arguments.name:
        raise ConfigError(f"{arguments.name}: the first word is the name of a dataset alone, as in metarun data glyphs")
    named = any(text.startswith("experiment=") for text in arguments.overrides)
    words = [f"dataset={arguments.name}", *([] if named else [NONE]), *arguments.overrides]
    config = compose(words, arguments.config_dir)
    settings = load_settings(resolve(config))
    from metarun.engine.build import build_dataset

    dataset = build_dataset(settings)
    if not arguments.check:
        dataset.prepare()
    print(dataset.describe())
    if arguments.preview:
        from metarun.analysis.preview import draw
        from metarun.core.types import TaskShape

        draw(dataset, TaskShape(settings.ways, settings.shots, settings.queries), arguments.preview)
        print(f"some tasks of {count(settings.ways, 'way')} and {count(settings.shots, 'shot')}: {arguments.preview}")


def profile(words: Sequence[str]) -> None:
    """Show where the time of a training step goes."""
    parser = Parser("profile", profile)
    parser.add_argument("overrides", nargs="*", default=[], help="the settings of a run, for example algo=maml")
    arguments = parser.read(words)
    config = compose(arguments.overrides, arguments.config_dir)
    settings = load_settings(resolve(config))
    from metarun.analysis.profile import describe

    print(*describe(settings), sep="\n")


def explain(words: Sequence[str]) -> None:
    """Draw what a run has learned: a loss, rates, or how it acts.

    Drawings, and the numbers behind them or an animation, go to explained/ in the run's folder.
    """
    parser = Parser("explain", explain)
    parser.add_argument("run", type=Path, help="the folder of the run, below outputs/")
    folder = RunFolder(parser.read(words).run.absolute())
    folder.settings()
    settings = load_settings(folder.config() | {"device": "cpu"})  # it is little work
    from metarun.analysis.explain import draw_learned
    from metarun.engine.build import Experiment

    print(*draw_learned(Experiment.build(settings), folder), sep="\n")


def report(words: Sequence[str]) -> None:
    """Write tables of finished runs beside the published figures.

    The files are report.html, report.md, report.csv and report.tex.
    """
    parser = Parser("report", report)
    parser.add_argument("runs", nargs="*", type=Path, default=[Path("outputs")], help="folders with runs (outputs)")
    parser.add_argument("--to", type=Path, default=Path("report"), help="the folder for the report (report)")
    arguments = parser.read(words)
    check_writable(arguments.to, "the report's folder")
    from metarun.reports import write_report

    print(*write_report(arguments.runs, arguments.to), sep="\n")


def reproduce(words: Sequence[str]) -> None:
    """Run what is missing of a paper's table, then write the report.

    A table has the name of a dataset, its cells are the experiments on it. A command that was stopped goes on when it
    is given again.
    """
    parser = Parser("reproduce", reproduce)
    parser.add_argument("table", help="omniglot, miniimagenet, sinusoid, ...")
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        help="length=short (the default, for two CPU cores), paper or smoke; cells=maml/*,protonet/*; "
        "settings for all runs",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="only show what would run, and how long if a run of that setting is there",
    )
    parser.add_argument("--to", type=Path, help="the folder for the report (report/TABLE-LENGTH)")
    arguments = parser.read(words)
    length, cells, overrides = table.read(arguments.overrides)
    to = arguments.to or Path("report") / f"{arguments.table}-{length}"
    check_writable(to, "the report's folder")
    chosen = table.choose(arguments.table, length, cells, arguments.config_dir)
    settings = [f"experiment={','.join(chosen)}", *(table.SMOKE if length == "smoke" else ()), *overrides]
    request = Request(settings, arguments.config_dir, multirun=True)
    jobs, root = plan(request)
    for line in table.estimate(jobs, root, arguments.config_dir):
        print(line, flush=True)
    if arguments.dry_run:
        return
    try:
        sweep(request)
    finally:
        from metarun.reports import write_report

        if finished := [job.folder.path for job in jobs if job.folder.result() is not None]:
            print(*write_report(finished, to), sep="\n")


def list_options(words: Sequence[str]) -> None:
    """Show the methods, datasets, backbones and experiments there are.

    Without a group: their names. With one: each with its description.
    """
    parser = Parser("list", list_options)
    parser.add_argument("group", nargs="?", help=", ".join(LISTED))
    parser.add_argument("pattern", nargs="?", default="*", help="which of them, for example 'maml/*'")
    parser.add_argument("--all", action="store_true", help="also the experiments at the paper's length")
    arguments = parser.read(words)
    if arguments.group is None:
        print(write_overview(arguments.config_dir))
    else:
        print(printable(write_group(arguments.group, arguments.pattern, arguments.all, arguments.config_dir)))


def check(words: Sequence[str]) -> None:
    """Run generic tests on a method, a dataset or a network.

    They are meant for one of your own; make it small by settings. Exit code 1 if one fails.
    """
    parser = Parser("check", check)
    parser.add_argument("component", help="algo=NAME, dataset=NAME or backbone=NAME")
    parser.add_argument("overrides", nargs="*", default=[], help="settings, for example algo.inner_steps=2")
    arguments = parser.read(words)
    from metarun.cli.check import find_checks

    failed = 0
    for test in find_checks(arguments.component, arguments.overrides, arguments.config_dir):
        try:
            test.run()
            print(f"ok      {test.title}", flush=True)
        except AssertionError as error:
            failed += 1
            print(f"FAILED  {test.title}: {error}", flush=True)
    if failed:
        raise Failed(f"{arguments.component}: {count(failed, 'check')} failed")


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "list": list_options,
    "data": data,
    "resume": resume,
    "evaluate": evaluate,
    "probe": probe,
    "predict": predict,
    "embed": embed,
    "export": export,
    "report": report,
    "reproduce": reproduce,
    "profile": profile,
    "explain": explain,
    "check": check,
}


def summarise_commands() -> dict[str, str]:
    """Command -> the first line of its docstring."""
    return {name: (command.__doc__ or "").partition("\n")[0] for name, command in COMMANDS.items()}
