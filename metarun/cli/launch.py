"""What is typed becomes a run or a sweep, checked before any folder is made, through Hydra."""

import argparse
import re
import sys
from collections.abc import Collection
from pathlib import Path

from hydra._internal.utils import get_args_parser
from omegaconf import DictConfig

from metarun.cli.compose import compose
from metarun.cli.hydra_app import Job, _run, _through_hydra
from metarun.cli.sweep import sweep
from metarun.config.errors import ConfigError, did_you_mean, reported
from metarun.config.load import load_settings, plain
from metarun.engine.process import launched
from metarun.runs.folder import RunFolder


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
        _follow(compose(asked.overrides, asked.config_dir, name))
    elif asked.multirun:
        sweep(asked.overrides, asked.config_dir, name)
    else:
        config = compose(asked.overrides, asked.config_dir, name)
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


def _prepared(config: DictConfig) -> Job:
    """One run, whose components are built already: Hydra makes its folder after what is wrong with them is said."""
    settings = load_settings(plain(config))
    folder = RunFolder(Path(config.hydra.run.dir).absolute())
    folder.check_writable()
    from metarun.runs.run import prepared

    experiment = prepared(settings, folder)

    def job(config: DictConfig) -> float:
        try:
            return _run(config, experiment)
        except Exception as error:
            sys.exit(reported(error))  # Hydra would print its own kind of traceback

    return job


def _follow(config: DictConfig) -> None:
    """As another rank than 0, which writes all there is to write: Hydra's files too."""
    values = plain(config)
    settings = load_settings(values)
    from metarun.runs.run import run

    run(settings, RunFolder(Path(config.hydra.run.dir).absolute()), values, {})
