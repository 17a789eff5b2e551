"""Components by name: `@register("algo", "maml", Traits(...))` makes a class reachable as `algo=maml`.

A component is a dataclass; a metric is a function. A field whose type is in the settings vocabulary is a setting of
the YAML; a field of a wiring type (a network, a device) is given by the wiring; any other type is an error.
Declarations are read from source, so that listing components and checking a configuration never import torch.

Other packages add components through an entry point in the group `metarun`, whose value is a package or module with
`@register`ed components. YAML files in the folder `configs` of that package are found too.
"""

import ast
import contextlib
import dataclasses
import functools
import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_type_hints

from metarun.config import schema
from metarun.config.errors import ConfigError, did_you_mean, find_reason, offer
from metarun.config.schema import Range
from metarun.config.traits import DECLARABLE, DatasetTraits, EncoderTraits, Kind, Metric, ProbeTraits, Traits
from metarun.config.validate import convert_fields

PACKAGE = Path(__file__).resolve().parents[1]
CONFIGS = next(folder for folder in (PACKAGE / "configs", PACKAGE.parent / "configs") if folder.is_dir())
GROUPS = (
    "algo",
    "backbone",
    "encoder",
    "dataset",
    "optimizer",
    "schedule",
    "logger",
)  # those that a configuration chooses from
LISTED = ("algo", "dataset", "backbone", "encoder", "probe", "experiment")  # by `metarun list`
SCALARS: dict[str, Any] = {"int": int, "float": float, "bool": bool, "str": str, "Any": Any}
RANGES = ("Count", "Whole", "Positive", "NonNegative", "Share", "Fraction", "Seed", "Norm")
VOCABULARY = SCALARS | {name: getattr(schema, name) for name in RANGES}
WIRING = (  # what the wiring gives
    "Backbone", "TaskSpec", "World", "Path", "nn.Linear", "torch.device", "tuple[int, ...]",
)  # fmt: skip
REQUIRED = {
    "algo": Traits,
    "dataset": DatasetTraits,
    "encoder": EncoderTraits,
    "metric": Metric,
    "probe": ProbeTraits,
}  # the traits that a group cannot do without
PLAIN = Metric(higher_is_better=False, worst=float("inf"), tolerance=0.0)
T = TypeVar("T")

_components: dict[tuple[str, str], Any] = {}
_traits: dict[Any, Any] = {}


@dataclass(frozen=True)
class Declaration:
    """What the source of a component says about it, before anything is imported."""

    module: str
    doc: str
    settings: dict[str, Any]  # field name -> type, for what YAML may set
    runtime: tuple[str, ...]  # fields that the wiring gives
    traits: Any  # one of metarun.config.traits; None where the component declares none


def register(group: str, name: str, traits: Any = None) -> Callable[[T], T]:
    """Make a class or function the component `name` of `group`. Raises ValueError if the name is taken."""

    def add(component: T) -> T:
        taken: Any = _components.setdefault((group, name), component)
        new: Any = component
        if (taken.__module__, taken.__qualname__) != (new.__module__, new.__qualname__):
            raise ValueError(f"{group}={name} is already {taken.__module__}.{taken.__qualname__}")
        _traits[component] = traits
        return component

    return add


def known(group: str) -> list[str]:
    """The names in a group, sorted."""
    return sorted(_declarations().get(group, {}))


def declaration(group: str, name: Any) -> Declaration:
    """The declaration of a component. Raises ConfigError, with the nearest known name, if there is none."""
    found = _declarations().get(group, {}).get(name) if isinstance(name, str) else None
    if found is None:
        shown = group if group in LISTED else None
        text = f"{group}.name is {name!r}: {offer(str(name), known(group), shown)}"
        raise ConfigError("; ".join([text, *broken_packages()]))
    return found


def metric(name: str) -> Metric:
    """How a metric is read and shown. Raises ConfigError."""
    found: Metric = declaration("metric", name).traits
    return found


def style(name: str) -> Metric:
    """How any logged number is shown: as its metric says, or plainly if it is not a registered one."""
    return metric(name) if name in known("metric") else PLAIN


def registered_traits(component: Any) -> Any:
    """The traits that a class or function was registered with; None if there are none."""
    return _traits.get(component)


def traits_of(algo: object) -> Traits:
    """The traits that an algorithm's class, or the one that it extends, was registered with; else the defaults."""
    return next(filter(None, map(registered_traits, type(algo).__mro__)), Traits(kinds=()))


def dataset_traits(values: Mapping[str, Any]) -> DatasetTraits:
    """The traits of a dataset with these settings, whose tasks may be of regression. Raises ConfigError."""
    traits: DatasetTraits = declaration("dataset", values["name"]).traits
    if traits.continuous and values.get("values") == "continuous":
        return dataclasses.replace(traits, kind="regression", metric=None)
    return traits


def find_misfit(algo: str, kind: Kind) -> str | None:
    """Say that a method cannot learn tasks of this kind; None if it can."""
    fitting = [name for name in known("algo") if kind in declaration("algo", name).traits.kinds]
    return None if algo in fitting else f"algo={algo} cannot learn {kind}: choose from {', '.join(fitting)}"


def check(group: str, values: Mapping[str, Any], problems: list[str], key: str | None = None) -> dict[str, Any]:
    """Convert a component's settings to their declared types; add every misfit to `problems`."""
    options = dict(values)
    try:
        declared = declaration(group, options.pop("name", None))
    except ConfigError as error:
        problems.append(str(error))
        return {}
    return convert_fields(options, declared.settings, key or group, problems)


def lookup(group: str, name: str) -> Any:
    """Import and return a registered class or function. Raises ConfigError."""
    module = declaration(group, name).module
    try:
        importlib.import_module(module)
    except Exception as error:
        if (whose := _find_owner(module)) is None:
            raise
        reason = find_reason(error)
        raise ConfigError(
            f"{group}={name} is in {whose}, whose import fails: {type(error).__name__}: {reason}"
        ) from error
    if (group, name) not in _components:
        raise ConfigError(f"{group}={name} is declared in {module}, but importing it does not register it")
    return _components[group, name]


def build(group: str, values: Mapping[str, Any], key: str | None = None, **runtime: Any) -> Any:
    """Construct the component that `values["name"]` names with the `runtime` fields it declares. Raises ConfigError."""
    problems: list[str] = []
    options = check(group, values, problems, key)
    if problems:
        raise ConfigError("\n".join(problems))
    declared = declaration(group, values["name"])
    component = lookup(group, values["name"])
    if absent := ", ".join(name for name in declared.runtime if name not in runtime):
        raise ConfigError(f"{declared.module}: {group}={values['name']} asks for {absent}, which no {group} is given")
    return component(**options, **{name: runtime[name] for name in declared.runtime})


def config_folders() -> list[Path]:
    """The folders of YAML files in other packages."""
    folders = []
    for point in entry_points(group="metarun"):
        with contextlib.suppress(ConfigError):  # `broken_packages` tells
            root = _root(point.value)
            folders += [root.parent / "configs"] if root.name == "__init__.py" else []
    return [folder for folder in folders if folder.is_dir()]


def broken_packages() -> list[str]:
    """One line for each package of others that cannot be used: which, and why."""
    return list(_read_packages()[1])


def _declarations() -> dict[str, dict[str, Declaration]]:
    return _read_packages()[0]


@functools.cache
def _read_packages() -> tuple[dict[str, dict[str, Declaration]], tuple[str, ...]]:
    """Read the components of metarun and of other packages. A broken package of others does not stop the rest."""
    table: dict[str, dict[str, Declaration]] = {}
    broken = []
    _add_package("metarun", table)
    for point in entry_points(group="metarun"):
        try:
            _add_package(point.value, table)
        except Exception as error:
            place = f"{error.filename}, line {error.lineno}: {error.msg}" if isinstance(error, SyntaxError) else error
            broken.append(f"{_name_package(point)} cannot be used: {place}")
    return table, tuple(broken)


def _name_package(point: EntryPoint) -> str:
    return f"the package {point.value} of {point.dist.name}" if point.dist else f"the package {point.value}"


def _find_owner(module: str) -> str | None:
    """The package of others that a module belongs to; None for metarun's own."""
    points = entry_points(group="metarun")
    return next((_name_package(point) for point in points if f"{module}.".startswith(f"{point.value}.")), None)


def _add_package(package: str, table: dict[str, dict[str, Declaration]]) -> None:
    """Add all components of a package to the table. Raises ConfigError and what reading broken source raises."""
    for module, path in _sources(package):
        for group, name, found in read_declarations(module, path):
            if name in table.setdefault(group, {}):
                raise ConfigError(f"{group}={name} is declared twice: in {table[group][name].module} and {module}")
            table[group][name] = found


def _root(package: str) -> Path:
    """The file of a module, or a package's `__init__.py`. Raises ConfigError."""
    try:
        spec = importlib.util.find_spec(package)
    except ImportError:  # a parent package that is missing
        spec = None
    except Exception as error:
        reason = f"{type(error).__name__}: {find_reason(error)}"
        raise ConfigError(f"importing what {package} is in fails: {reason}") from error
    if spec is None or spec.origin is None:
        raise ConfigError(f"there is no module {package}, which its entry point in the group metarun names")
    return Path(spec.origin)


def _sources(package: str) -> Iterator[tuple[str, Path]]:
    root = _root(package)
    if root.name != "__init__.py":
        yield package, root
        return
    for path in sorted(root.parent.rglob("*.py")):
        parts = [package, *path.relative_to(root.parent).with_suffix("").parts]
        yield ".".join(parts).removesuffix(".__init__"), path


def read_declarations(module: str, path: Path) -> Iterator[tuple[str, str, Declaration]]:
    """Read the group, name and declaration of every component in a source file. Raises ConfigError."""
    source = path.read_text(encoding="utf-8")
    if "@register(" not in source:
        return
    for node in ast.parse(source, str(path)).body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef):
            continue
        for call in node.decorator_list:
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "register":
                place = f"{module}.{node.name}"
                group, name, *rest = call.args
                settings, runtime = _fields(node, place) if isinstance(node, ast.ClassDef) else ({}, ())
                traits = _read_traits(rest[0], place) if rest else None
                kind = REQUIRED.get(ast.literal_eval(group))
                if kind is not None and not isinstance(traits, kind):
                    raise ConfigError(f"{place}: register needs {kind.__name__}(...) as its third argument")
                found = Declaration(module, ast.get_docstring(node) or "", settings, runtime, traits)
                yield ast.literal_eval(group), ast.literal_eval(name), found


def _read_traits(node: ast.expr, place: str) -> Any:
    """The record that a decorator's third argument writes out. Raises ConfigError."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in DECLARABLE and not node.args:
        kind = DECLARABLE[node.func.id]
        values = {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords if keyword.arg}
        needed = {field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING}
        hints = {name: hint for name, hint in get_type_hints(kind).items() if name in needed | values.keys()}
        problems: list[str] = []
        convert_fields(values, hints, f"{place}: {node.func.id}", problems)
        if problems:
            raise ConfigError("; ".join(sorted(problems)))
        return kind(**values)
    raise ConfigError(f"{place}: register takes one of {', '.join(DECLARABLE)}, written out with literal values")


def _fields(node: ast.ClassDef, place: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A dataclass's settings, with their types, and the fields that the wiring gives. Raises ConfigError."""
    settings: dict[str, Any] = {}
    runtime = []
    for field in node.body:
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name) or field.value is not None:
            continue
        if ast.unparse(field.annotation) in WIRING:
            runtime.append(field.target.id)
        else:
            settings[field.target.id] = _type(field.annotation, f"{place}.{field.target.id}")
    return settings, tuple(runtime)


def _type(node: ast.expr, place: str) -> Any:
    """The type that an annotation of the settings vocabulary names. Raises ConfigError."""
    match node:
        case ast.Name(id=name) if name in VOCABULARY:
            return VOCABULARY[name]
        case ast.Constant(value=None):
            return type(None)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return Union[_type(left, place), _type(right, place)]  # noqa: UP007
        case ast.Subscript(value=ast.Name(id="list"), slice=item):
            return list[_type(item, place)]  # type: ignore[misc]
        case ast.Subscript(value=ast.Name(id="dict"), slice=ast.Tuple(elts=[_, item])):
            return dict[str, _type(item, place)]  # type: ignore[misc]
        case ast.Subscript(value=ast.Name(id="Literal"), slice=options):
            values = ast.literal_eval(options)
            return Literal[values if isinstance(values, tuple) else (values,)]
        case ast.Subscript(value=ast.Name(id="Annotated"), slice=ast.Tuple(elts=[base, ast.Call() as bound])):
            arguments = [ast.literal_eval(argument) for argument in bound.args]
            limits = {keyword.arg: ast.literal_eval(keyword.value) for keyword in bound.keywords if keyword.arg}
            return Annotated[_type(base, place), Range(*arguments, **limits)]
    found, kinds = ast.unparse(node), [*VOCABULARY, *WIRING]
    raise ConfigError(
        f"{place}: {found} is neither a type of setting nor given by the wiring{did_you_mean(found, kinds)}"
    )
