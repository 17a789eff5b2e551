"""Typed settings, and the check of composed values against their types. Never imports torch.

A setting's type is an ordinary annotation: `int`, `float`, `bool`, `str`, `Literal[...]`, `X | None`,
`list[X]`, `dict[str, X]`, a dataclass of settings, or one of the ranges named below.
"""

import difflib
import math
import types
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Range:
    """A bound on a number: `low` itself is allowed unless `open`; `high` is always allowed."""

    low: float
    open: bool = False
    high: float | None = None

    def __str__(self) -> str:
        text = f"above {self.low:g}" if self.open else f"at least {self.low:g}"
        return text + (f" and at most {self.high:g}" if self.high is not None else "")

    def holds(self, value: float) -> bool:
        above = value > self.low if self.open else value >= self.low
        return above and (self.high is None or value <= self.high)


Count = Annotated[int, Range(1)]
Whole = Annotated[int, Range(0)]
Positive = Annotated[float, Range(0, open=True)]
NonNegative = Annotated[float, Range(0)]
Fraction = Annotated[float, Range(0, high=1)]
Norm = Literal["batch", "running", "per_query"]


@dataclass(frozen=True)
class TrainerSettings:
    """How meta-training runs; the same for every algorithm."""

    steps: Count
    tasks_per_step: Count
    tasks_per_chunk: Count | None  # tasks differentiated at once; null: all of a step
    execution: Literal["auto", "vmap", "loop"]
    workers: Count | Literal["auto"]  # processes on the CPU that share the tasks of a step
    compile: bool
    cuda_graph: bool  # on a GPU, the whole step recorded
    precision: Literal["float32", "tf32", "bfloat16"]
    channels_last: bool  # memory order of convolution weights
    clip_norm: Positive | dict[str, Positive] | None  # of the whole gradient, or per component of theta
    clip_value: Positive | dict[str, Positive] | None
    log_every: Count
    eval_every: Count
    patience: Count | None  # validations without improvement after which training stops
    keep_best: Count  # checkpoints to keep of those that validated best, for an ensemble


@dataclass(frozen=True)
class EvalSettings:
    """How meta-validation and meta-test run."""

    tasks: Count
    val_tasks: Count
    seed: Whole
    ways: Count
    shots: Count
    queries: Count
    tasks_per_chunk: Count
    checkpoint: str
    algo: dict[str, Any]  # settings of the algorithm that differ at meta-test; or another algorithm's, by name
    variants: dict[str, dict[str, Any]]  # name -> settings of this table that differ


@dataclass(frozen=True)
class Settings:
    """The whole of a composed configuration."""

    algo: dict[str, Any]
    dataset: dict[str, Any]
    backbone: dict[str, Any]
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    logger: dict[str, Any]
    trainer: TrainerSettings
    eval: EvalSettings
    ways: Count
    shots: Count
    queries: Count
    device: str
    seed: Whole
    data_dir: str | None


def at_meta_test(trained: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """An algorithm's settings with those that differ at meta-test; another `name` brings all settings of its own."""
    return {**changes} if changes.get("name", trained["name"]) != trained["name"] else {**trained, **changes}


def did_you_mean(word: str, known: Collection[str]) -> str:
    """' (did you mean X?)', or nothing when no known word is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean {near[0]}?)" if near else ""


def instead(word: str, known: Collection[str]) -> str:
    """The nearest known word, or all of them when none is near."""
    return did_you_mean(word, known) or (f": choose from {', '.join(known)}" if known else "")


def convert(value: Any, kind: Any, key: str, problems: list[str]) -> Any:
    """`value` as the type `kind`; what does not fit is added to `problems` under `key`."""
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
        return _dataclass(value, kind, key, problems)
    if origin in (Union, types.UnionType):
        return _either(value, args, key, problems)
    if origin is Literal:
        if value not in args:
            options = ", ".join(map(str, args))
            problems.append(
                f"{key} is {_shown(value)}: choose from {options}{did_you_mean(str(value), [str(a) for a in args])}"
            )
        return value
    if origin is dict:
        if isinstance(value, Mapping):
            return {str(k): convert(v, args[1], f"{key}.{k}", problems) for k, v in value.items()}
    elif origin is list:
        if isinstance(value, list | tuple):
            return [convert(v, args[0], f"{key}[{i}]", problems) for i, v in enumerate(value)]
    elif kind in (int, float):
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if number and value == kind(value):  # 1e4 is a whole number too
            return kind(value)
    elif isinstance(value, kind):
        return value
    problems.append(f"{key} is {_shown(value)}: it must be {_described(kind)}")
    return value


def convert_fields(
    values: Mapping[str, Any], declared: Mapping[str, Any], key: str, problems: list[str]
) -> dict[str, Any]:
    """Check a mapping against field name -> type: unknown, missing and ill-typed keys are all reported."""
    prefix = f"{key}." if key else ""
    for name in values.keys() - declared.keys():
        problems.append(f"{prefix}{name}: no such setting{instead(name, declared.keys())}")
    for name in declared.keys() - values.keys():
        problems.append(f"{prefix}{name}: missing")
    return {
        name: convert(values[name], kind, prefix + name, problems) for name, kind in declared.items() if name in values
    }


def _dataclass(value: Any, kind: Any, key: str, problems: list[str]) -> Any:
    if not isinstance(value, Mapping):
        problems.append(f"{key} is {_shown(value)}: it must be a group of settings")
        return value
    before = len(problems)
    hints = get_type_hints(kind, include_extras=True)
    declared = {field.name: hints[field.name] for field in fields(kind)}
    converted = convert_fields(value, declared, key, problems)
    return kind(**converted) if len(problems) == before else value


def _either(value: Any, options: tuple[Any, ...], key: str, problems: list[str]) -> Any:
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
        kinds = " or ".join(_described(option) for option in options)
        problems.append(f"{key} is {_shown(value)}: it must be {kinds}")
    return value


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, str) else "null" if value is None else str(value)


def _described(kind: Any) -> str:
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return f"{_described(args[0])} {args[1]}"
    if origin is Literal:
        return "one of " + ", ".join(map(str, args))
    if origin is list:
        return f"a list, each {_described(args[0])}"
    if origin is dict:
        return "a mapping of names" + ("" if args[1] is Any else f", each to {_described(args[1])}")
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    return "anything" if kind is Any else names.get(kind, str(kind))
