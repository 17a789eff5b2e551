"""The command line: `metarun [overrides]` trains, a few sub-commands do the rest."""

import argparse
import ctypes
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from metarun import __version__, composing
from metarun.settings import ConfigError

MISTAKE, FAILURE, INTERRUPTED = 2, 1, 130
_failures: list[str] = []  # of the jobs of a sweep


def main() -> None:
    """Console entry point. Exit codes: 0 done, 1 the run failed, 2 a mistake in the request, 130 stopped."""
    signal.signal(signal.SIGTERM, _terminate)
    _prepare_cpu()
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
    sys.exit(FAILURE if _failures else 0)


def _reported(error: BaseException) -> int:
    """One line for what the user can understand, a traceback for what only we can."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else FAILURE
    if isinstance(error, BrokenPipeError):  # the reader of our output left, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if isinstance(error, KeyboardInterrupt):
        print(
            "stopped; the same command again, or metarun resume, goes on from the last checkpoint",
            file=sys.stderr,
        )
        return INTERRUPTED
    if isinstance(error, ConfigError):
        print(f"metarun: {error}", file=sys.stderr)
        return MISTAKE
    if type(error).__name__ in ("Stopped", "Failed"):  # of metarun.run, which imports torch
        print(f"metarun: {error}", file=sys.stderr)
        return INTERRUPTED if type(error).__name__ == "Stopped" else FAILURE
    raise error


def _terminate(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _train() -> None:
    # These tables are open: their keys are the algorithm's, so Hydra need not be told with a "+" that one is new.
    sys.argv[1:] = [f"++{text}" if text.startswith(("eval.algo.", "eval.variants.")) else text for text in sys.argv[1:]]
    arguments = get_args_parser().parse_args()
    shows = arguments.help or arguments.hydra_help or arguments.cfg or arguments.info or arguments.shell_completion
    if not arguments.hydra_help and not arguments.shell_completion:
        sweep = composing.jobs(arguments.overrides) if arguments.multirun else iter([arguments.overrides])
        for overrides in sweep:
            config = composing.compose(overrides, arguments.config_dir, arguments.config_name or "config")
            if not shows:
                composing.load_settings(composing.plain(config))
                _check_writable(Path(config.hydra.run.dir))
    _hydra_main()


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(13, "permission denied")
    except OSError as error:
        raise ConfigError(f"the run folder {folder} cannot be written: {error.strerror}") from error


@hydra.main(config_path=str(composing.CONFIGS), config_name="config", version_base="1.3")
def _hydra_main(config: DictConfig) -> float | None:
    context = HydraConfig.get()
    try:
        return _run(config, Path(context.runtime.output_dir), dict(context.runtime.choices))
    except Exception as error:
        if context.mode == RunMode.RUN:
            sys.exit(_reported(error))
        _failures.append(str(error))  # the other jobs of a sweep go on
        _reported(error)
        return float("nan")


def _prepare_cpu() -> None:
    """Two habits of the C libraries that cost small training steps dearly; they must change before torch loads.

    glibc returns each large tensor's memory to the kernel and faults it in again (1.3 to 1.75 times slower);
    OpenMP's threads spin while they wait, which stalls everything where cores are shared.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for option, value in ((-3, 2**31 - 1), (-1, 2**31 - 1), (-2, 2**28)):  # mmap, trim threshold; top pad
            mallopt(option, value)


def _run(config: DictConfig, folder: Path, choices: dict[str, Any]) -> float:
    values = composing.plain(config)
    settings = composing.load_settings(values)
    from metarun.folder import RunFolder
    from metarun.run import run

    names = {group: choice for group, choice in choices.items() if not group.startswith("hydra/")}
    return run(settings, RunFolder(folder), values, names)


def resume() -> None:
    """Continue a run that was stopped, exactly where its last checkpoint is."""
    parser = argparse.ArgumentParser(prog="metarun resume", description=resume.__doc__)
    parser.add_argument("run", type=Path, help="the run's folder, under outputs/")
    folder = parser.parse_args().run

    from metarun.folder import RunFolder

    values, choices = RunFolder(folder).config(), RunFolder(folder).choices()
    settings = composing.load_settings(values)
    from metarun.run import run

    run(settings, RunFolder(folder.absolute()), values, choices)


def evaluate() -> None:
    """Test a finished run again, with the same or other settings.

    Settings are those of eval (ways=20, shots=5, tasks=5000, checkpoint=last, algo.inner_steps=10), and device
    and data_dir. Without any, the run's own test is repeated.
    """
    parser = argparse.ArgumentParser(prog="metarun evaluate", description=evaluate.__doc__)
    parser.add_argument("run", type=Path, help="the run's folder, under outputs/")
    parser.add_argument("overrides", nargs="*", help="settings that differ, as ways=20")
    arguments = parser.parse_args()

    from metarun.folder import RunFolder

    folder = RunFolder(arguments.run.absolute())
    config = OmegaConf.create(folder.config())
    elsewhere = ("eval.", "device=", "data_dir=", "dataset.path=")
    changes = [text if text.startswith(elsewhere) else f"eval.{text}" for text in arguments.overrides]
    config.merge_with_dotlist(changes)
    settings = composing.load_settings(composing.plain(config))
    from metarun.run import retest

    retest(settings, folder, arguments.overrides)


def data() -> None:
    """Fetch, verify and prepare a dataset; say what is there and what is missing."""
    parser = argparse.ArgumentParser(prog="metarun data", description=data.__doc__)
    parser.add_argument("name", help="a dataset, as metarun list shows them")
    parser.add_argument("overrides", nargs="*", help="settings, as dataset.path=/data or data_dir=/data")
    parser.add_argument("--check", action="store_true", help="only look, fetch and prepare nothing")
    arguments = parser.parse_args()
    config = composing.compose([f"dataset={arguments.name}", *arguments.overrides])
    settings = composing.load_settings(composing.plain(config))
    from metarun.experiment import dataset_of

    dataset = dataset_of(settings)
    if not arguments.check:
        dataset.prepare()
    print(dataset.describe())


def list_all() -> None:
    """Show the algorithms, datasets, backbones and experiments there are, one line each."""
    parser = argparse.ArgumentParser(prog="metarun list", description=list_all.__doc__)
    parser.add_argument("group", nargs="?", choices=["algo", "dataset", "backbone", "experiment"])
    chosen = parser.parse_args().group
    for group in [chosen] if chosen else ["algo", "dataset", "backbone", "experiment"]:
        print(f"{group}=")
        for option, line in composing.described_options(group):
            print(f"  {option:28}{line}")


COMMANDS: dict[str, Callable[[], None]] = {
    "list": list_all,
    "resume": resume,
    "evaluate": evaluate,
    "data": data,
}
