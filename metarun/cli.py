"""The command line: `metarun [overrides]` trains, a few sub-commands do the rest."""

import argparse
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from metarun import __version__, composing
from metarun.errors import Busy, ConfigError, Failed, Stopped
from metarun.folder import RunFolder
from metarun.registry import declaration
from metarun.reproducing import SMOKE, experiments, outlook, request
from metarun.settings import did_you_mean
from metarun.sweeps import WORST, Ledger, claim_gpu, finite_or_worst
from metarun.workers import launched, prepare_cpu

if TYPE_CHECKING:  # imports torch, which takes seconds: only what trains or tests waits for that
    from metarun.experiment import Experiment

FAILURE, INTERRUPTED = 1, 130
Job = Callable[[DictConfig], float]


def main() -> None:
    """Console entry point. Exit codes: 0 done, 1 the run failed, 2 a mistake in the request, 130 stopped."""
    signal.signal(signal.SIGTERM, _terminate)
    prepare_cpu()
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    try:
        if command in COMMANDS:
            sys.argv = [f"metarun {command}", *sys.argv[2:]]
            COMMANDS[command]()
        elif command == "--version":
            print(f"metarun {__version__}")
        else:
            _train()
    except BaseException as error:
        sys.exit(_reported(error))
    sys.exit(0)


def _reported(error: BaseException) -> int:
    """One line for what the user can understand, a traceback for what only we can. Returns the exit code."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else FAILURE
    if isinstance(error, BrokenPipeError):  # the reader of our output left, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if isinstance(error, ConfigError | Failed | Stopped):
        print(f"metarun: {error}", file=sys.stderr)
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        print("stopped; the same command again, or metarun resume, goes on from the last checkpoint", file=sys.stderr)
        return INTERRUPTED
    traceback.print_exception(error)
    return FAILURE


def _terminate(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _train() -> None:
    """One run or a sweep. All that can be checked beforehand is, while no folder is made yet."""
    # These tables are open: their keys are the algorithm's, so Hydra need not be told with a "+" that one is new.
    sys.argv[1:] = [f"++{text}" if text.startswith(("eval.algo.", "eval.variants.")) else text for text in sys.argv[1:]]
    asked = _arguments()
    name = asked.config_name or "config"
    if asked.hydra_help or asked.shell_completion:
        _through_hydra(_run)
    elif launched() is not None and asked.multirun:
        raise ConfigError(
            "a sweep under torchrun: start one torchrun for each run, or leave it to --multirun's launchers"
        )
    elif launched():
        _follow(composing.compose(asked.overrides, asked.config_dir, name))
    elif asked.multirun:
        _sweep(asked.overrides, asked.config_dir, name)
    else:
        config = composing.compose(asked.overrides, asked.config_dir, name)
        shows = asked.help or asked.cfg or asked.info
        _through_hydra(_run if shows else _prepared(config))


def _arguments() -> argparse.Namespace:
    """Hydra's own. Raises ConfigError for what would be read as something that it was not meant to be."""
    parser = get_args_parser()
    parser.prog, parser.usage = "metarun", "metarun [--help] [--multirun] [--cfg job] [group=option] [path=value]"
    asked = parser.parse_intermixed_args()
    # Hydra parses again, by another rule: options may not stand between overrides.
    sys.argv[1:] = [word for word in sys.argv[1:] if word not in asked.overrides] + asked.overrides
    if asked.config_path:
        raise ConfigError("--config-path would replace metarun's own configuration: use --config-dir to add to it")
    for word in asked.overrides:
        if re.fullmatch(r"[\w./-]+", word):
            hint = did_you_mean(word, COMMANDS)
            raise ConfigError(f"{word} is no command{hint}: choose from {', '.join(COMMANDS)}, or set name=value")
    return asked


def _through_hydra(job: Job) -> None:
    """Let Hydra show what was asked for, or make the folders and call `job`, in a sweep for each of its runs."""
    base = {"version_base": "1.3"} if hydra.__version__.startswith("1.3") else {}  # later versions know no other
    hydra.main(config_path=str(composing.CONFIGS), config_name="config", **base)(job)()


def _prepared(config: DictConfig) -> Job:
    """One run, whose components are built already: Hydra makes its folder after what is wrong with them is said."""
    settings = composing.load_settings(composing.plain(config))
    folder = RunFolder(Path(config.hydra.run.dir).absolute())
    folder.check_writable()
    from metarun.run import prepared

    experiment = prepared(settings, folder)

    def job(config: DictConfig) -> float:
        try:
            return _run(config, experiment)
        except Exception as error:
            sys.exit(_reported(error))  # Hydra would print its own kind of traceback

    return job


def _follow(config: DictConfig) -> None:
    """As another rank than 0, which writes all there is to write: Hydra's files too."""
    values = composing.plain(config)
    settings = composing.load_settings(values)
    from metarun.run import run

    run(settings, RunFolder(Path(config.hydra.run.dir).absolute()), values, {})


def _sweep(overrides: list[str], config_dir: str | None, name: str) -> None:
    """All runs, also after one that failed; those that are done already are passed over. Raises Failed at the end if
    there was a failure.
    """
    jobs, root = _jobs(overrides, config_dir, name)
    ledger = Ledger.of(root, [name, *overrides])
    ledger.plan(jobs)

    def job(config: DictConfig) -> float:
        context = HydraConfig.get()
        folder = Path(context.runtime.output_dir).absolute()
        typed = jobs.get(folder, list(context.overrides.task))
        kind = str(declaration("dataset", config.dataset.name).constants["kind"])
        try:
            if jobs and folder not in jobs:
                raise ConfigError("its settings were edited while the sweep ran: start the sweep again")
            if config.device in ("auto", "cuda"):
                claim_gpu()
            ledger.note("started", folder, typed)
            score = _run(config)
        except Stopped as error:
            sys.exit(_reported(error))
        except Exception as error:
            _reported(error)
            first = str(error).partition("\n")[0] or type(error).__name__
            ledger.note("elsewhere" if isinstance(error, Busy) else "failed", folder, typed, error=first)
            return WORST[kind]
        ledger.note("done", folder, typed, score=score)
        return finite_or_worst(score, kind)

    _through_hydra(job)
    told = "\n".join([f"sweep {ledger.file}", *ledger.told(jobs)])
    if ledger.failures():
        raise Failed(told)
    print(told)


def _jobs(
    overrides: list[str], config_dir: str | None = None, name: str = "config"
) -> tuple[dict[Path, list[str]], Path]:
    """The folder of each run of a sweep and its overrides, all checked; and the folder of the sweep.

    No runs where their folders are not known beforehand: where a sweeper chooses the values, or a folder is named by
    the job's number. Raises ConfigError.
    """
    jobs: dict[Path | None, list[str]] = {}
    for job in composing.jobs(overrides, config_dir):
        config = composing.compose(job, config_dir, name)
        composing.load_settings(composing.plain(config))
        root, folder = composing.sweep_folders(config)
        RunFolder(folder or root).check_writable()
        jobs[folder] = job
    unknown = None in jobs or composing.is_open_ended(overrides)
    return {} if unknown else {folder: job for folder, job in jobs.items() if folder}, root


def _run(config: DictConfig, experiment: "Experiment | None" = None) -> float:
    """The run that Hydra composed, in the folder that it made."""
    context, values = HydraConfig.get(), composing.plain(config)
    choices = {group: choice for group, choice in context.runtime.choices.items() if not group.startswith("hydra/")}
    settings = composing.load_settings(values)
    from metarun.run import run

    return run(settings, RunFolder(Path(context.runtime.output_dir)), values, choices, experiment)


def resume() -> None:
    """Continue a run that was stopped, exactly where its last checkpoint is."""
    parser = argparse.ArgumentParser(prog="metarun resume", description=resume.__doc__)
    parser.add_argument("run", type=Path, help="the run's folder, under outputs/")
    folder = RunFolder(parser.parse_args().run.absolute())
    values, choices = folder.config(), folder.choices()
    settings = composing.load_settings(values)
    from metarun.run import run

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
    config = composing.changed(folder.config(), changes)
    settings = composing.load_settings(config)
    from metarun.run import retest

    retest(settings, folder, config, arguments.overrides)


def data() -> None:
    """Fetch, verify and prepare a dataset; say what is there and what is missing."""
    parser = argparse.ArgumentParser(prog="metarun data", description=data.__doc__)
    parser.add_argument("name", help="a dataset, as metarun list shows them")
    parser.add_argument("overrides", nargs="*", default=[], help="settings, as dataset.path=/data or data_dir=/data")
    parser.add_argument("--check", action="store_true", help="only look, fetch and prepare nothing")
    parser.add_argument("--preview", type=Path, metavar="PNG", help="a file for a picture of some tasks")
    arguments = parser.parse_args()
    config = composing.compose([f"dataset={arguments.name}", *arguments.overrides])
    settings = composing.load_settings(composing.plain(config))
    from metarun.experiment import dataset_of

    dataset = dataset_of(settings)
    if not arguments.check:
        dataset.prepare()
    print(dataset.describe())
    if arguments.preview:
        from metarun.preview import draw
        from metarun.types import TaskShape

        draw(dataset, TaskShape(settings.ways, settings.shots, settings.queries), arguments.preview)
        print(f"some tasks of {settings.ways} ways and {settings.shots} shots: {arguments.preview}")


def profile() -> None:
    """Show where the time of a training step goes, with the same settings as a run's."""
    parser = argparse.ArgumentParser(prog="metarun profile", description=profile.__doc__)
    parser.add_argument("overrides", nargs="*", default=[], help="settings, as algo=maml dataset=omniglot device=cuda")
    parser.add_argument("--config-dir", help="a folder with YAML files of your own")
    arguments = parser.parse_args()
    config = composing.compose(arguments.overrides, arguments.config_dir)
    settings = composing.load_settings(composing.plain(config))
    from metarun.profiling import profile as profiled

    print(*profiled(settings), sep="\n")


def explain() -> None:
    """Draw what a run has learned besides weights: a loss beside the usual one, rates by layer and step.

    Drawings and the numbers behind them go to the run's folder, under explained/.
    """
    parser = argparse.ArgumentParser(prog="metarun explain", description=explain.__doc__)
    parser.add_argument("run", type=Path, help="the run's folder, under outputs/")
    folder = RunFolder(parser.parse_args().run.absolute())
    settings = composing.load_settings(folder.config())
    from metarun.experiment import Experiment
    from metarun.explaining import explained

    print(*explained(Experiment.of(settings), folder), sep="\n")


def report() -> None:
    """Write finished runs beside the published figures: report.html, report.md, report.csv and report.tex."""
    parser = argparse.ArgumentParser(prog="metarun report", description=report.__doc__)
    parser.add_argument("runs", nargs="*", type=Path, default=[Path("outputs")], help="folders with runs; outputs")
    parser.add_argument("--to", type=Path, default=Path("report"), help="the folder for the report; report")
    arguments = parser.parse_args()
    from metarun.reporting import written

    for file in written(arguments.runs, arguments.to):
        print(file)


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
    jobs, _ = _jobs(overrides)
    print(*outlook(jobs), sep="\n")
    if arguments.dry_run:
        return
    sys.argv = ["metarun", "--multirun", *overrides]
    try:
        _sweep(overrides, None, "config")
    finally:
        from metarun.reporting import written

        finished = [folder for folder in jobs if RunFolder(folder).result() is not None]
        for file in (
            written(finished, arguments.to or Path("report") / f"{arguments.table}-{length}") if finished else ()
        ):
            print(file)


def list_all() -> None:
    """Show the algorithms, datasets, backbones and experiments there are, one line each."""
    parser = argparse.ArgumentParser(prog="metarun list", description=list_all.__doc__)
    parser.add_argument("group", nargs="?", choices=["algo", "dataset", "backbone", "experiment"])
    chosen = parser.parse_args().group
    for group in [chosen] if chosen else ["algo", "dataset", "backbone", "experiment"]:
        described = composing.described_options(group)
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
