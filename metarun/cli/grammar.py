"""Overrides in Hydra's grammar, and the jobs of a sweep."""

import itertools
from collections.abc import Iterator

from hydra._internal.hydra import Hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from metarun.cli.hydra_app import _hydra
from metarun.config.errors import ConfigError


def parsed(overrides: list[str], hydra: Hydra | None = None) -> list[Override]:
    """Overrides in Hydra's grammar. Raises ConfigError."""
    parser = OverridesParser.create(hydra.config_loader if hydra else None)
    found = []
    for text in overrides:
        try:
            found += parser.parse_overrides([text])
        except HydraException as error:
            shown = text.removeprefix("++")
            if "=" not in text:
                reason = "a setting is written name=value"
            elif any(text.count(a) != text.count(b) for a, b in ("[]", "{}", "()")):
                reason = "a bracket is open; in a shell quote the whole, as 'name={a: 1}'"
            else:
                reason = "quote special characters twice, as 'name=\"a = b\"'"
            raise ConfigError(f"{shown} cannot be read: {reason}") from error
    return found


def jobs(overrides: list[str], config_dir: str | None = None) -> Iterator[list[str]]:
    """The overrides of every job of a sweep; for open-ended sweeps (an interval), of one example."""
    alternatives = []
    with _hydra(config_dir) as hydra:
        asked = parsed(overrides, hydra)
    for override in asked:
        key = override.get_key_element()
        if override.is_discrete_sweep():
            alternatives.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        elif override.is_sweep_override():
            alternatives.append([f"{key}={override.value().start}"])  # type: ignore[union-attr]
        else:
            alternatives.append([override.input_line or ""])
    return (list(job) for job in itertools.product(*alternatives))


def is_open_ended(overrides: list[str]) -> bool:
    """Whether a sweeper chooses the values, as from an interval."""
    return any(override.is_sweep_override() and not override.is_discrete_sweep() for override in parsed(overrides))
