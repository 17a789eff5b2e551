"""What the sub-commands read their words by."""

import argparse
import inspect
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from metarun.cli.grammar import expand_home, show
from metarun.cli.hydra_app import check_folder
from metarun.cli.overview import wrap
from metarun.config.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """The options of a sub-command; --config-dir and --help are common to all."""

    def __init__(self, name: str, command: Callable[..., None]) -> None:
        form = argparse.RawDescriptionHelpFormatter
        paragraphs = inspect.cleandoc(command.__doc__ or "").split("\n\n")
        text = "\n\n".join("\n".join(wrap(paragraph, "")) for paragraph in paragraphs)
        super().__init__(f"metarun {name}", description=text, formatter_class=form, allow_abbrev=False)
        self.add_argument("--config-dir", metavar="DIR", help="a folder with YAML files of your own")

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """Parse the words; options may stand between them. Raises ConfigError."""
        found = self.parse_intermixed_args(words)
        if found.config_dir is not None:
            check_folder(found.config_dir)
        if "overrides" in found:
            found.overrides = list(map(expand_home, found.overrides))
        return found

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.prog}: {show(message)}; see {self.prog} --help")


def check_file(option: str, file: Path | None, *endings: str) -> None:
    """Raise ConfigError if a file that is to be written has another ending, or cannot be written."""
    if file is None:
        return
    if file.suffix.lower() not in endings or file.is_dir():
        raise ConfigError(f"{option} is {file}: give a file whose name ends with {' or '.join(endings)}")
    if not file.parent.is_dir():
        raise ConfigError(f"{option} is {file}: there is no folder {file.parent}")
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise ConfigError(f"{option} is {file}: no permission to write it")
