"""The imports tell the story: a file imports from its own layer and those below it, in no circle."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = (  # from the top; rooms of one layer know nothing of each other
    ("cli",),
    ("reports", "analysis"),
    ("runs",),
    ("engine",),
    ("algos", "backbones", "datasets"),
    ("core",),
    ("config",),
)
FLOOR = {room: floor for floor, rooms in enumerate(reversed(LAYERS)) for room in rooms}
FACES = ("metarun", "metarun.__main__")  # what the world sees: above all rooms


def modules() -> dict[str, Path]:
    """Dotted name -> file, of every module of the package."""
    found = {}
    for path in (ROOT / "metarun").rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of the package that a file imports, those inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "metarun":
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in known else node.module for name in whole}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in known}
    return found


def room(module: str) -> str:
    return module.split(".")[1]


MODULES = modules()
IMPORTS = {module: imports(path, MODULES) for module, path in MODULES.items()}


@pytest.mark.parametrize("module", sorted(MODULES.keys() - set(FACES)))
def test_a_file_knows_only_its_own_layer_and_those_below(module: str) -> None:
    floor = FLOOR[room(module)]
    for other in IMPORTS[module] - {"metarun"}:
        assert other not in FACES, f"{module} imports {other}"
        below = FLOOR[room(other)] < floor
        assert below or room(other) == room(module), f"{module} imports {other}, which is not below it"


def test_no_file_imports_itself_through_others() -> None:
    TopologicalSorter(IMPORTS).prepare()  # raises CycleError, with the circle


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
def test_what_only_tells_never_imports_torch(place: Path, code: str) -> None:
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
