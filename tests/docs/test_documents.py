"""The documents agree with the package and with each other."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

import metarun
from metarun.cli.commands import COMMANDS
from metarun.cli.compose import compose, describe_options
from metarun.config.registry import declaration, known

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
YAML = sorted([ROOT / "CITATION.cff", ROOT / ".pre-commit-config.yaml", *ROOT.glob(".github/ISSUE_TEMPLATE/*.yml")])
LARGEST = 150_000  # bytes of a picture
GROUPS = ("algo", "backbone", "dataset", "eval", "logger", "optimizer", "schedule", "trainer")
INVENTED = ("yours", "weighted", "cosine_means", "corridor")  # names of components that a reader is to write


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files_of_the_checkout(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!https?://|mailto:|#)([^)#\s]+)[^)\s]*\)", text)
    assert [target for target in targets if not (document.parent / target).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_that_are_named_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    named = re.findall(r"`((?:metarun|tests|scripts|configs|docs|examples)/[\w/.-]+)`", text)
    assert [name for name in named if not any(word in name for word in INVENTED) and not (ROOT / name).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_settings_that_are_named_exist(document: Path) -> None:
    """Keys such as `trainer.steps` and `eval.algo.inner_steps`, and choices such as `dataset=omniglot`."""
    text = document.read_text(encoding="utf-8")
    wrong = []
    names = "|".join(GROUPS)
    for group, key in re.findall(rf"(?<!self\.)\b(?:eval\.(?=algo))?({names})\.([a-z]\w+)\b", text):
        defined = (file.read_text(encoding="utf-8") for file in ROOT.glob(f"configs/{group}/*.yaml"))
        if not any(re.search(rf"^(?:  )?{key}:", text, re.MULTILINE) for text in defined):
            wrong.append(f"{group}.{key}")
    for group, options in re.findall(rf"(?<![\w.])({names})=([\w,]+)", text):
        files = {file.stem for file in ROOT.glob(f"configs/{group}/*.yaml")}
        wrong += [
            f"{group}={option}" for option in options.split(",") if option not in files and option not in INVENTED
        ]
    assert wrong == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_that_are_named_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    found = re.findall(r"`metarun ([a-z]+)[ `]", text)
    for block in re.findall(r"^```bash\n(.+?)^```", text, re.MULTILINE | re.DOTALL):
        found += re.findall(r"^(?:\S*/)?metarun ([a-z]+)(?=\s)", block, re.MULTILINE)
    assert {command for command in found if command not in COMMANDS} == set()


def test_every_classifier_is_measured_on_glyphs_or_has_a_reason() -> None:
    """Each has a row, which says what the plain command takes, or is said to be unmeasured; low ones are explained."""
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    section = page.partition("## On glyphs by the plain command\n")[2].partition("\n## ")[0]
    table, _, reasons = section.partition("\nBelow 90 %:\n")
    reasons, _, unmeasured = reasons.partition("\nNot measured to the end:\n")
    rows = re.findall(r"^\| `(\w+)` \| (common|`glyphs_5w1s`).*? \| (\d+\.\d) %", table, re.MULTILINE)
    measured = {name: float(accuracy) for name, _, accuracy in rows}
    explained, waiting = (re.findall(r"^- `(\w+)`", text, re.MULTILINE) for text in (reasons, unmeasured))
    kinds = {name: declaration("algo", name).traits.kinds for name in known("algo")}
    others = {name for name in kinds if "classification" not in kinds[name]} | {"rule"}
    assert sorted([name for name, _, _ in rows] + waiting) == sorted(describe_options("algo").keys() - others)
    own = {name for name, settings, _ in rows if settings == "`glyphs_5w1s`"}
    assert own == {file.parent.name for file in ROOT.glob("configs/experiment/*/glyphs_5w1s.yaml")}
    assert {name for name in measured if measured[name] < 90} == set(explained)


@pytest.mark.parametrize("file", YAML, ids=lambda path: path.name)
def test_files_for_other_programs_are_yaml(file: Path) -> None:
    assert isinstance(yaml.safe_load(file.read_text(encoding="utf-8")), dict)


def test_the_citation_has_the_packages_version_and_licence() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (citation["version"], citation["license"]) == (metarun.__version__, project["license"])


def test_the_changelog_begins_with_this_version() -> None:
    versions = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert versions[0] == metarun.__version__


@pytest.mark.integration
def test_ci_runs_readmes_test_command() -> None:
    """Run the line of .ci/run that finds it."""
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    found = re.search(r"^command=\$\((.+)\)$", script, re.MULTILINE)
    assert found is not None
    command = subprocess.run(["bash", "-c", found[1]], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert command.splitlines() == [
        'python3 -m venv .venv && .venv/bin/pip install -e ".[test]" && .venv/bin/python -m pytest'
    ]


def test_pictures_are_small() -> None:
    assert [path.name for path in ROOT.glob("docs/**/*.png") if path.stat().st_size > LARGEST] == []


@pytest.mark.parametrize("document", ["SECURITY.md", "docs/reliability.md"])
def test_the_tests_that_are_named_exist(document: str) -> None:
    named = re.findall(r"`(?:tests/)?([\w/]+\.py)::(\w+)`", (ROOT / document).read_text(encoding="utf-8"))
    assert len(named) > 10
    missing = [
        test for file, test in named if f"\ndef {test}(" not in (ROOT / "tests" / file).read_text(encoding="utf-8")
    ]
    assert missing == []


def test_a_new_setting_does_not_move_the_runs_of_earlier_versions() -> None:
    """The README shows the folder of the plain command; another would mean that finished runs are trained again."""
    assert f"\nin {compose([]).hydra.run.dir}: result.json" in (ROOT / "README.md").read_text("utf-8")
