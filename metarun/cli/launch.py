"""From a request to a run or a sweep: everything is checked before a folder is made."""

import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from metarun.cli.compose import compose, find_folder
from metarun.cli.hydra_app import Job, Request, call, run_composed
from metarun.cli.outlook import announce
from metarun.cli.sweep import show_jobs, sweep
from metarun.config.errors import ConfigError, report_error
from metarun.config.load import load_settings, resolve
from metarun.config.schema import Settings
from metarun.engine.process import launcher_rank, prepare_cpu
from metarun.runs.folder import RunFolder
from metarun.runs.result import Result

SHOWN_BY_HYDRA = {"hydra-help", "shell-completion"}  # which concern none of our settings


def launch(request: Request) -> None:
    """Train, sweep, or show what was asked for. Raises ConfigError, Failed, Stopped."""
    shows = {"cfg", "info"} & request.flags.keys()
    if SHOWN_BY_HYDRA & request.flags.keys():
        call(request, run_composed)
    elif launcher_rank() is not None and request.multirun:
        raise ConfigError("a sweep under torchrun: start one torchrun for each run, or use --multirun's launchers")
    elif request.multirun and shows:
        if request.flags.get("cfg") != "job":
            raise ConfigError("of a sweep only the jobs can be shown: --multirun --cfg job")
        print(*show_jobs(request), sep="\n")
    elif request.multirun:
        sweep(request)
    else:
        config = compose(request.overrides, request.config_dir, request.config_name)
        settings = load_settings(resolve(config))
        if launcher_rank():
            _follow(config, settings)
        elif shows:
            call(request, run_composed)
        else:
            job = _prepare(config, settings)
            _say_first(config, request.config_dir)
            call(request, job)


def run_here(overrides: Sequence[str]) -> tuple[Path, Result]:
    """Run what `metarun OVERRIDES` would, from Python. Returns the folder and the result.

    A finished run is returned at once. Raises ConfigError, Failed, Stopped.
    """
    for text in overrides:
        if not isinstance(text, str):
            raise ConfigError(f"run({text!r}): give settings as texts, run('algo=maml', 'seed=1')")
        if text.startswith("-") or not ("=" in text or text.startswith("~")):
            raise ConfigError(f"{text} is no setting: give name=value")
    request = Request.parse(overrides, ())
    config = compose(request.overrides)
    values, folder = resolve(config), RunFolder(find_folder(config, "hydra.run.dir"))
    settings = load_settings(values)
    if (result := folder.result()) is None:
        _say_first(config, None)
        prepare_cpu()
        from metarun.runs.run import run

        folder.check_writable()
        choices = {group: choice for group, choice in config.hydra.runtime.choices.items() if "hydra/" not in group}
        run(settings, folder, values, choices)
        (folder.path / ".hydra").mkdir(exist_ok=True)  # where reports find the overrides
        OmegaConf.save(OmegaConf.create(list(overrides)), folder.path / ".hydra" / "overrides.yaml")
        result = folder.result()
    else:
        folder.check_same(values)
        from metarun.runs.run import prepare

        prepare(settings, folder)
    if result is None:
        raise ConfigError("under torchrun only the first process has a result: use the command metarun there")
    return folder.path, result


def _say_first(config: DictConfig, config_dir: str | None) -> None:
    """Say whose settings a run takes and how long that will be, unless it is finished."""
    folder = RunFolder(find_folder(config, "hydra.run.dir"))
    if folder.result() is None and (line := announce(resolve(config), config.hydra, folder.path, config_dir)):
        print(line, flush=True)


def _prepare(config: DictConfig, settings: Settings) -> Job:
    """Build one run's components, so that mistakes in them are found before Hydra makes the folder."""
    folder = RunFolder(find_folder(config, "hydra.run.dir"))
    folder.check_writable()
    from metarun.runs.run import prepare

    experiment = prepare(settings, folder)

    def job(config: DictConfig) -> float:
        try:
            return run_composed(config, experiment)
        except Exception as error:
            sys.exit(report_error(error))  # Hydra would print its own kind of traceback

    return job


def _follow(config: DictConfig, settings: Settings) -> None:
    """Run as another rank than 0; rank 0 writes all files, also Hydra's."""
    from metarun.runs.run import run

    run(settings, RunFolder(find_folder(config, "hydra.run.dir")), resolve(config), {})
