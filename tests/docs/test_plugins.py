"""What docs/plugins.md lists for packages of others exists, and is all that our own examples import."""

import ast
import re
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import metarun
import metarun.testing

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/plugins.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `([\w.]+)` \| (.+) \|$", PAGE, re.MULTILINE)
LISTED = {module: re.findall(r"`(\w+)`", names) for module, names in ROWS}
COMPONENTS = ("metarun.algos.", "metarun.backbones.", "metarun.datasets.")
WORLD = ROOT / "tests/plugin/metarun_example/corridor.py"
EXAMPLES = [ROOT / "tests/plugin/metarun_example/__init__.py", WORLD, ROOT / "examples/own_loop.py"]


def test_the_library_and_the_checks_are_listed_whole() -> None:
    assert LISTED["metarun"] == metarun.__all__
    assert LISTED["metarun.testing"] == metarun.testing.__all__
    assert len(LISTED) > 10


@pytest.mark.parametrize("module", LISTED)
def test_what_is_listed_exists(module: str) -> None:
    missing = [name for name in LISTED[module] if not hasattr(import_module(module), name)]
    assert (missing, len(set(LISTED[module]))) == ([], len(LISTED[module]))


def read_block(language: str) -> str:
    """The first block of the page in this language."""
    found = re.search(rf"^```{language}\n(.+?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def test_the_page_shows_the_package_that_the_tests_install() -> None:
    package = ROOT / "tests/plugin"
    assert read_block("python") == (package / "metarun_example/__init__.py").read_text(encoding="utf-8")
    settings = "metarun_example/configs/algo/cosine_means.yaml"
    assert read_block("yaml") == (package / settings).read_text(encoding="utf-8")
    assert all((package / file).is_file() for file in read_block("text").split())
    shown = tomllib.loads(read_block("toml"))["project"]
    installed = tomllib.loads((package / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert shown.items() <= installed.items()


def test_the_page_on_agents_shows_the_world_that_the_tests_install() -> None:
    page = (ROOT / "docs/agents.md").read_text(encoding="utf-8")
    assert f"```python\n{WORLD.read_text(encoding='utf-8')}```\n" in page


def list_imports(source: str) -> Iterator[tuple[str, str]]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "metarun":
            yield from ((str(node.module), alias.name) for alias in node.names)


def read_sources() -> dict[str, str]:
    """Our examples of what others may write."""
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    method = next(block for block in re.findall(r"^```python\n(.+?)^```", guide, re.MULTILINE | re.DOTALL))
    return {path.name: path.read_text(encoding="utf-8") for path in EXAMPLES} | {"CONTRIBUTING.md": method}


@pytest.mark.parametrize(("name", "source"), read_sources().items())
def test_our_own_examples_import_nothing_else(name: str, source: str) -> None:
    found = [
        (module, imported)
        for module, imported in list_imports(source)
        if not module.startswith(COMPONENTS) and imported not in LISTED.get(module, ())
    ]
    assert (found, any(list_imports(source))) == ([], True)
