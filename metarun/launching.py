"""What is typed becomes a run or a sweep, checked before any folder is made, through Hydra."""

import argparse
import re
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from metarun import composing
from metarun.errors import Busy, ConfigError, Failed, Stopped, reported
from metarun.folder import RunFolder
from metarun.registry import declaration
from metarun.settings import did_you_mean
from metarun.sweeps import WORST, Ledger, claim_gpu, finite_or_worst
from metarun.workers import launched

if TYPE_CHECKING:  # imports torch, which takes seconds: only what trains or tests waits for that
    from metarun.experiment import Experiment

Job = Callable[[DictConfig], float]


def train(commands: Collection[str]) -> None:
    """One run or a sweep. All that can be checked beforehand is, while no folder is made yet.

    commands: what a word could have been meant for that is no setting.
    """
    # These tables are open: their keys are the algorithm's, so Hydra need not be told with a "+" that one is new.
    sys.argv[1:] = [f"++{text}" if text.startswith(("eval.algo.", "eval.variants.")) else text for text in sys.argv[1:]]
    asked = _arguments(commands)
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
        sweep(asked.overrides, asked.config_dir, name)
    else:
        config = composing.compose(asked.overrides, asked.config_dir, name)
        shows = asked.help or asked.cfg or asked.info
        _through_hydra(_run if shows else _prepared(config))


def _arguments(commands: Collection[str]) -> argparse.Namespace:
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
            hint = did_you_mean(word, commands)
            raise ConfigError(f"{word} is no command{hint}: choose from {', '.join(commands)}, or set name=value")
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
            sys.exit(reported(error))  # Hydra would print its own kind of traceback

    return job


def _follow(config: DictConfig) -> None:
    """As another rank than 0, which writes all there is to write: Hydra's files too."""
    values = composing.plain(config)
    settings = composing.load_settings(values)
    from metarun.run import run

    run(settings, RunFolder(Path(config.hydra.run.dir).absolute()), values, {})


def sweep(overrides: list[str], config_dir: str | None, name: str) -> None:
    """All runs, also after one that failed; those that are done already are passed over. Raises Failed at the end if
    there was a failure.
    """
    jobs, root = sweep_jobs(overrides, config_dir, name)
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
            sys.exit(reported(error))
        except Exception as error:
            reported(error)
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


def sweep_jobs(
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
