"""Components by name: `@register("algo", "maml")` makes a class reachable as `algo=maml`.

A component is a dataclass. Its fields with a type from the settings vocabulary are what YAML may set; its
other fields (a network, a device) are given by the wiring. Declarations are read from source, so that
listing components and checking a configuration never import torch.

Other packages add components through an entry point in the group `metarun`, whose value is a package
(or module) to look for `@register` in. YAML files in the folder `configs` of that package are found too.
"""

import ast
import contextlib
import functools
import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar

from metarun.config import schema as settings
from metarun.config.errors import ConfigError, did_you_mean
from metarun.config.schema import Range
from metarun.config.validate import convert_fields

GROUPS = ("algo", "backbone", "dataset", "optimizer", "schedule", "logger")
T = TypeVar("T")

_classes: dict[tuple[str, str], type] = {}


@dataclass(frozen=True)
class Declaration:
    """What the source of a component says about it, before anything is imported."""

    module: str
    doc: str
    settings: dict[str, Any]  # field name -> type, for what YAML may set
    runtime: tuple[str, ...]  # fields that the wiring gives
    constants: dict[str, Any]  # class variables with literal values


def register(group: str, name: str) -> Callable[[type[T]], type[T]]:
    """Make a dataclass the component `name` of `group`. Raises ValueError where the name is taken."""

    def add(component: type[T]) -> type[T]:
        taken = _classes.setdefault((group, name), component)
        if (taken.__module__, taken.__qualname__) != (component.__module__, component.__qualname__):
            raise ValueError(f"{group}={name} is already {taken.__module__}.{taken.__qualname__}")
        return component

    return add


def known(group: str) -> list[str]:
    """The names in a group, sorted."""
    return sorted(_declarations()[group])


def declaration(group: str, name: Any) -> Declaration:
    """Raises ConfigError, with the nearest known name, where there is none."""
    found = _declarations()[group].get(name)
    if found is None:
        options = ", ".join(known(group))
        raise ConfigError(f"{group}.name is {name!r}: choose from {options}{did_you_mean(str(name), known(group))}")
    return found


def check(group: str, values: Mapping[str, Any], problems: list[str], key: str | None = None) -> dict[str, Any]:
    """The component's settings with their declared types; every misfit is added to `problems`."""
    options = dict(values)
    try:
        declared = declaration(group, options.pop("name", None))
    except ConfigError as error:
        problems.append(str(error))
        return {}
    return convert_fields(options, declared.settings, key or group, problems)


def build(group: str, values: Mapping[str, Any], key: str | None = None, **runtime: Any) -> Any:
    """Construct the component that `values["name"]` names, giving it the `runtime` fields it declares."""
    problems: list[str] = []
    options = check(group, values, problems, key)
    if problems:
        raise ConfigError("\n".join(problems))
    declared = declaration(group, values["name"])
    importlib.import_module(declared.module)
    return _classes[group, values["name"]](**options, **{name: runtime[name] for name in declared.runtime})


@functools.cache
def _declarations() -> dict[str, dict[str, Declaration]]:
    table: dict[str, dict[str, Declaration]] = {group: {} for group in GROUPS}
    for package in ["metarun", *(point.value for point in entry_points(group="metarun"))]:
        for module, path in _sources(package):
            for group, name, found in _declared_in(module, path):
                if name in table[group]:
                    raise ConfigError(f"{group}={name} is declared twice: in {table[group][name].module} and {module}")
                table[group][name] = found
    return table


def config_folders() -> list[Path]:
    """Where other packages have their YAML files."""
    roots = [_root(point.value) for point in entry_points(group="metarun")]
    folders = [root.parent / "configs" for root in roots if root.name == "__init__.py"]
    return [folder for folder in folders if folder.is_dir()]


def _root(package: str) -> Path:
    """The file of a module, or a package's `__init__.py`."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ConfigError(f"entry point metarun: there is no package {package}")
    return Path(spec.origin)


def _sources(package: str) -> Iterator[tuple[str, Path]]:
    root = _root(package)
    if root.name != "__init__.py":
        yield package, root
        return
    for path in sorted(root.parent.rglob("*.py")):
        parts = [package, *path.relative_to(root.parent).with_suffix("").parts]
        yield ".".join(parts).removesuffix(".__init__"), path


def _declared_in(module: str, path: Path) -> Iterator[tuple[str, str, Declaration]]:
    source = path.read_text(encoding="utf-8")
    if "@register(" not in source:
        return
    for node in (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)):
        for decorator in node.decorator_list:
            if isinstance(decorator, ast.Call) and getattr(decorator.func, "id", "") == "register":
                group, name = (ast.literal_eval(argument) for argument in decorator.args)
                yield group, name, _declaration(module, node)


def _declaration(module: str, node: ast.ClassDef) -> Declaration:
    types: dict[str, Any] = {}
    constants: dict[str, Any] = {}
    runtime = []
    for field in node.body:
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        name = field.target.id
        if field.value is not None:
            with contextlib.suppress(ValueError):  # not a literal
                constants[name] = ast.literal_eval(field.value)
        elif (kind := _setting_type(field.annotation)) is not None:
            types[name] = kind
        else:
            runtime.append(name)
    return Declaration(module, ast.get_docstring(node) or "", types, tuple(runtime), constants)


_VOCABULARY = {kind.__name__: kind for kind in (int, float, bool, str, list, dict, Range)} | {
    name: getattr(settings, name)
    for name in (
        "Count",
        "Whole",
        "Positive",
        "NonNegative",
        "Fraction",
        "Norm",
        "Annotated",
        "Any",
        "Literal",
    )
}


def _setting_type(annotation: ast.expr) -> Any:
    """The annotation's type if it is in the settings vocabulary, else None."""
    try:
        return eval(ast.unparse(annotation), {"__builtins__": {}}, _VOCABULARY)
    except (NameError, AttributeError):
        return None
