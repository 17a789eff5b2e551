"""The check of composed values against their declared types. Never imports torch."""

import math
import types
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import MISSING, fields, is_dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from metarun.config.errors import did_you_mean, instead


def convert(value: Any, kind: Any, key: str, problems: list[str]) -> Any:
    """Convert `value` to the type `kind`; add what does not fit to `problems` under `key`."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        before = len(problems)
        value = convert(value, args[0], key, problems)
        if len(problems) == before and not args[1].holds(value):
            problems.append(f"{key} is {value}: it must be {args[1]}")
        return value
    if kind is Any:
        return value
    if is_dataclass(kind):
        return _convert_dataclass(value, kind, key, problems)
    if origin in (Union, types.UnionType):
        return _convert_union(value, args, key, problems)
    if origin is Literal:
        if value not in args:
            options = ", ".join(map(str, args))
            problems.append(
                f"{key} is {_show(value)}: choose from {options}{did_you_mean(str(value), [str(a) for a in args])}"
            )
        return value
    if origin is dict:
        if isinstance(value, Mapping):
            return {str(k): convert(v, args[1], f"{key}.{k}", problems) for k, v in value.items()}
    elif origin is tuple:
        if isinstance(value, tuple):
            return tuple(convert(v, args[0], f"{key}[{i}]", problems) for i, v in enumerate(value))
    elif origin is list:
        if isinstance(value, list | tuple):
            return [convert(v, args[0], f"{key}[{i}]", problems) for i, v in enumerate(value)]
    elif kind in (int, float):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        with suppress(OverflowError, ValueError):  # inf and nan as int; an int beyond all floats
            if number and value == kind(value) and (isinstance(value, int) or math.isfinite(value)):
                return kind(value)  # 1e4 is a whole number too
    elif isinstance(value, kind):
        return value
    problems.append(f"{key} is {_show(value)}: it must be {_describe(kind)}")
    return value


def convert_fields(
    values: Mapping[str, Any], declared: Mapping[str, Any], key: str, problems: list[str]
) -> dict[str, Any]:
    """Convert a mapping by field name -> type; add unknown, missing and ill-typed keys to `problems`."""
    prefix = f"{key}." if key else ""
    for name in values.keys() - declared.keys():
        problems.append(f"{prefix}{name}: no such setting{instead(str(name), declared.keys())}")
    for name in declared.keys() - values.keys():
        problems.append(f"{prefix}{name}: missing")
    return {
        name: convert(values[name], kind, prefix + name, problems) for name, kind in declared.items() if name in values
    }


def _convert_dataclass(value: Any, kind: Any, key: str, problems: list[str]) -> Any:
    if not isinstance(value, Mapping):
        problems.append(f"{key} is {_show(value)}: it must be a group of settings")
        return value
    before = len(problems)
    hints = get_type_hints(kind, include_extras=True)
    declared = {field.name: hints[field.name] for field in fields(kind)}
    defaults = {field.name: field.default for field in fields(kind) if field.default is not MISSING}
    defaults |= {field.name: field.default_factory() for field in fields(kind) if field.default_factory is not MISSING}
    converted = convert_fields({**defaults, **value}, declared, key, problems)
    return kind(**converted) if len(problems) == before else value


def _convert_union(value: Any, options: tuple[Any, ...], key: str, problems: list[str]) -> Any:
    attempts = []
    for option in options:
        if option is type(None):
            if value is None:
                return None
            continue
        found: list[str] = []
        converted = convert(value, option, key, found)
        if not found:
            return converted
        attempts.append(found)
    if len(attempts) == 1:
        problems.extend(attempts[0])
    else:
        kinds = " or ".join(_describe(option) for option in options)
        problems.append(f"{key} is {_show(value)}: it must be {kinds}")
    return value


def _show(value: Any) -> str:
    return repr(value) if isinstance(value, str) else "null" if value is None else str(value)


def _describe(kind: Any) -> str:
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return f"{_describe(args[0])} {args[1]}"
    if origin is Literal:
        return "one of " + ", ".join(map(str, args))
    if origin in (list, tuple):
        return f"a {origin.__name__}, each {_describe(args[0])}"
    if origin is dict:
        return "a mapping of names" + ("" if args[1] is Any else f", each to {_describe(args[1])}")
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    return "anything" if kind is Any else names.get(kind, str(kind))
