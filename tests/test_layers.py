"""A file imports from its own room and from lower layers only, without circles; some commands never import torch."""

import ast
import subprocess
import sys
from collections.abc import Iterable
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = (  # from the top; rooms of one layer do not import each other
    ("cli",),
    ("reports", "analysis"),
    ("runs",),
    ("probes",),
    ("engine",),
    ("algos", "backbones", "encoders", "datasets"),
    ("core",),
    ("config",),
)
FLOOR = {room: floor for floor, rooms in enumerate(reversed(LAYERS)) for room in rooms}
FACES = ("metarun", "metarun.__main__", "metarun.testing")  # above all rooms


def find_modules() -> dict[str, Path]:
    """Dotted name -> file, of every module of the package."""
    found = {}
    for path in (ROOT / "metarun").rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


def find_imports(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of the package that a file imports, also inside of functions."""
    return find_imported(ast.walk(ast.parse(path.read_text(encoding="utf-8"))), known)


def find_imported(nodes: Iterable[ast.AST], known: dict[str, Path]) -> set[str]:
    """The modules of the package that these statements import."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "metarun":
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in known else node.module for name in whole}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in known}
    return found


def find_loaded(module: str, known: dict[str, Path]) -> set[str]:
    """The modules of the package that importing one loads, itself included: by statements outside of functions."""
    loaded, waiting = set(), ["metarun", module]
    while waiting:
        name = waiting.pop()
        if name not in loaded:
            loaded.add(name)
            waiting += find_imported(ast.parse(known[name].read_text(encoding="utf-8")).body, known)
    return loaded


def room(module: str) -> str:
    return module.partition(".")[2].partition(".")[0]


MODULES = find_modules()
IMPORTS = {module: find_imports(path, MODULES) for module, path in MODULES.items()}


@pytest.mark.parametrize("module", sorted(MODULES.keys() - set(FACES)))
def test_a_file_imports_from_its_own_room_and_those_below(module: str) -> None:
    floor = FLOOR[room(module)]
    for other in IMPORTS[module]:
        assert other not in FACES, f"{module} imports {other}"
        below = FLOOR[room(other)] < floor
        assert below or room(other) == room(module), f"{module} imports {other}, which is not below it"


def test_no_file_imports_itself_through_others() -> None:
    TopologicalSorter(IMPORTS).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("module", [name for name in MODULES if room(name) == "config"] + ["metarun.cli.main"])
def test_no_torch_is_loaded_with(module: str) -> None:
    for name in find_loaded(module, MODULES):
        for node in ast.parse(MODULES[name].read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {first.partition(".")[0] for first in names} & {"torch", "torchvision"}, f"by {name}"


@pytest.mark.integration
@pytest.mark.parametrize(
    "code",
    [
        "import pkgutil, importlib, metarun.config as c\n"
        "for m in pkgutil.iter_modules(c.__path__): importlib.import_module(f'metarun.config.{m.name}')",
        "run('list')",
        "run('--help')",
        "run('--cfg', 'job')",
    ],
)
def test_what_only_prints_never_imports_torch(place: Path, code: str) -> None:
    program = (
        "import sys\n"
        "def run(*arguments):\n"
        "    from metarun.cli.main import main\n"
        "    sys.argv[1:] = arguments\n"
        "    try: main()\n"
        "    except SystemExit as end: assert end.code == 0, end.code\n"
        f"{code}\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
