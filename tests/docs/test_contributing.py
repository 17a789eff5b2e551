"""The page on adding a method is true: its files, put where it says, are a method that trains and is tested."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import TINY

ROOT = Path(__file__).parents[2]
NEEDED = ("configs", "docs", "metarun", "scripts", "tests", "pyproject.toml", "README.md")
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^`([\w/.]+)`:\n\n```\w+\n(.+?)^```$", PAGE, re.MULTILINE | re.DOTALL))
ALGO = "weighted"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this checkout, with the files that the page shows."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in NEEDED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copy)
    for name, text in FILES.items():
        (copy / name).write_text(text, encoding="utf-8")
    return copy


def python(checkout: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in `folder`, importing metarun from the checkout."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def test_the_page_shows_one_module_one_yaml_and_one_module_of_tests() -> None:
    assert list(FILES) == [f"metarun/algos/{ALGO}.py", f"configs/algo/{ALGO}.yaml", f"tests/reference/{ALGO}.py"]
    assert not any((ROOT / name).exists() for name in FILES)


@pytest.mark.integration
def test_its_method_trains_by_the_command(checkout: Path, place: Path) -> None:
    done = python(checkout, place, "-m", "metarun", f"algo={ALGO}", *TINY, "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    result = json.loads((place / "run/result.json").read_text(encoding="utf-8"))
    assert (result["config"]["algo"]["name"], result["training"]["steps"]) == (ALGO, 4)


@pytest.mark.integration
def test_its_gradient_and_its_learning_are_tested_by_enumeration(checkout: Path) -> None:
    chosen = ["tests/algos/test_gradients.py", "tests/algos/test_learning.py", "-k", f"every_registered or {ALGO}"]
    done = python(checkout, checkout, "-m", "pytest", "-n0", "-v", "-m", "not slow", *chosen)
    assert done.returncode == 0, done.stdout + done.stderr
    for test in ("equals_a_loop_of_plain_autograd", "a_directional_finite_difference", "makes_it_better"):
        assert re.search(rf"{test}\[{ALGO}.* PASSED", done.stdout), done.stdout


@pytest.mark.integration
def test_the_tables_of_methods_name_it(checkout: Path) -> None:
    done = python(checkout, checkout, "scripts/methods.py")
    assert done.returncode == 0, done.stderr
    assert f"| `{ALGO}` | metric |" in (checkout / "docs/methods.md").read_text(encoding="utf-8")
    assert f"`{ALGO}`" in (checkout / "README.md").read_text(encoding="utf-8")
