"""Overrides in Hydra's grammar, and the jobs of a sweep."""

import itertools
import os
from collections.abc import Iterator, Sequence

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException

from metarun.config.errors import ConfigError

LIMIT = 10_000  # values of one setting in a sweep


def parse(overrides: Sequence[str], loader: ConfigLoader | None = None) -> list[Override]:
    """Read overrides. Raises ConfigError.

    loader: knows the config groups, whose options `glob(...)` stands for.
    """
    parser = OverridesParser.create(loader)
    found = []
    for text in overrides:
        try:
            read = parser.parse_overrides([text])
        except (HydraException, ValueError, RecursionError) as error:  # a number of many digits; a deep nest of lists
            raise ConfigError(f"{show(text)} cannot be read: {_guess_reason(text)}") from error
        if not all(override.key_or_group for override in read):
            raise ConfigError(f"{show(text)} cannot be read: a setting is written name=value")
        found += read
    return found


def expand_home(text: str) -> str:
    """An override whose value begins with ~, which the shell leaves as it is where it is quoted."""
    name, _, value = text.partition("=")
    return f"{name}={os.path.expanduser(value)}" if value == "~" or value.startswith("~/") else text


def show(text: str) -> str:
    """An override as it was typed, on one line."""
    typed = text.removeprefix("++")
    return typed if typed.isprintable() else repr(typed)


def _guess_reason(text: str) -> str:
    """Why an override cannot be read, by the usual mistakes."""
    if "=" not in text:
        return "a setting is written name=value"
    if any(text.count(opening) != text.count(closing) for opening, closing in ("[]", "{}", "()")):
        return "a bracket is open; in a shell quote the whole, as 'name={a: 1}'"
    return "quote special characters twice, as 'name=\"a = b\"'"


def expand(overrides: Sequence[str], loader: ConfigLoader) -> Iterator[list[str]]:
    """The overrides of each job of a sweep; an interval becomes its start. Raises ConfigError."""
    alternatives = [_list_values(override) for override in parse(overrides, loader)]
    return (list(job) for job in itertools.product(*alternatives))


def _list_values(override: Override) -> list[str]:
    """What the jobs of a sweep have in place of one override, at least one text. Raises ConfigError."""
    key, value, typed = override.get_key_element(), override.value(), override.input_line or ""
    if isinstance(value, IntervalSweep):
        return [f"{key}={value.start}"]
    if not override.is_discrete_sweep():
        return [typed]
    try:
        found = [f"{key}={text}" for text in itertools.islice(override.sweep_string_iterator(), LIMIT + 1)]
    except (HydraException, ValueError, ArithmeticError) as error:  # a range with a step of 0 or nan
        raise ConfigError(f"{show(typed)} cannot be read: {_guess_reason(typed)}") from error
    if not 0 < len(found) <= LIMIT:
        raise ConfigError(f"{show(typed)} stands for {'more than ' if found else ''}{LIMIT if found else 'no'} values")
    return found
