"""The command line, as documented: what each command prints, what it leaves in the run's folder, and what it keeps."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from metarun import __version__
from metarun.cli.commands import COMMANDS, summarise_commands
from metarun.cli.compose import compose
from metarun.cli.hydra_app import CONFIGS
from tests.conftest import TINY, Command

Train = Callable[..., Path]


@pytest.fixture
def train(metarun: Command) -> Train:
    """A tiny run that must succeed; returns its folder."""

    def run(folder: str, *overrides: str) -> Path:
        answer = metarun(*TINY, f"hydra.run.dir={folder}", *overrides)
        assert answer.code == 0, answer.err
        return Path(folder).absolute()

    return run


def result(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "result.json").read_text(encoding="utf-8")))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the log, which also tells who asked when."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "train.log"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# What only prints


def assert_fits(text: str, lines: int) -> None:
    """On one screen: not more lines than that, none wider than 80 columns."""
    assert len(text.splitlines()) <= lines
    assert max(map(len, text.splitlines())) <= 80


def test_help_shows_usage_commands_examples_and_choices_on_one_screen(
    metarun: Command, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    answer = metarun("--help")
    assert answer.code == 0
    assert_fits(answer.out, lines=60)
    parts = ("usage: metarun", "Commands (each", "Examples", "Options", "Groups")
    positions = [answer.out.index(part) for part in parts]
    assert positions == sorted(positions)
    algos = sorted(file.stem for file in (CONFIGS / "algo").glob("*.yaml"))
    assert f" algo {', '.join(algos)} " in " ".join(answer.out.split())
    assert {line.split()[0] for line in answer.out.splitlines() if line} >= COMMANDS.keys()
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_takes_a_folder_of_yaml_files(
    metarun: Command, place: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert len(summarise_commands()[command]) <= 66
    answer = metarun(command, "--config-dir", "nowhere", "--help")
    assert answer.code == 0
    assert answer.out.startswith(f"usage: metarun {command} ")
    assert "--config-dir DIR" in answer.out
    assert_fits(answer.out, lines=40)
    assert list(place.iterdir()) == []


def test_version(metarun: Command) -> None:
    assert metarun("--version").out == f"metarun {__version__}\n"


def test_list_names_everything_on_one_screen(metarun: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = metarun("list").out
    assert_fits(out, lines=40)
    names = out.replace(",", " ").split()
    for group in ("algo", "dataset", "backbone"):
        assert {path.stem for path in (CONFIGS / group).glob("*.yaml")} <= set(names)
    assert f"experiment= ({len(list((CONFIGS / 'experiment').rglob('*.yaml')))})" in out
    families = [line.split("  ")[1] for line in out.partition("dataset=")[0].splitlines()[1:] if line[2] != " "]
    assert families == sorted(families)
    assert "other" not in families


@pytest.mark.parametrize("group", ["algo", "dataset", "backbone", "experiment"])
def test_list_has_a_described_line_for_every_file(
    metarun: Command, monkeypatch: pytest.MonkeyPatch, group: str
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    files = sorted((CONFIGS / group).rglob("*.yaml"))
    lines = metarun("list", group, "--all").out.splitlines()
    assert lines[0] == f"{group}="
    assert len(lines) == 1 + len(files)
    for line, file in zip(lines[1:], files):
        name, description = line.split(maxsplit=1)
        assert name == file.relative_to(CONFIGS / group).with_suffix("").as_posix()
        assert len(description) > 10
    monkeypatch.setenv("COLUMNS", "80")
    assert_fits(metarun("list", group, "--all").out, lines=1000)


def test_list_shows_those_of_a_pattern_and_no_twins(metarun: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")

    def names(*arguments: str) -> list[str]:
        lines = metarun("list", "experiment", *arguments).out.splitlines()
        return [line.split()[0] for line in lines[1:] if line.startswith("  ")]

    short = names("maml/omniglot_5*")
    assert short == ["maml/omniglot_5w1s", "maml/omniglot_5w5s"]
    assert names("maml/omniglot_5*", "--all") == [name for one in short for name in (one, f"{one}_paper")]
    assert names("maml/*5w1s_paper") == ["maml/miniimagenet_5w1s_paper", "maml/omniglot_5w1s_paper"]
    assert "2 more have the paper's length" in metarun("list", "experiment", "maml/omniglot_5*").out


def test_list_shows_files_of_the_users_own(metarun: Command, place: Path) -> None:
    (place / "mine/experiment").mkdir(parents=True)
    (place / "mine/experiment/own.yaml").write_text("# Mine: it is short\nseed: 1\n")
    assert "own   Mine: it is short" in metarun("list", "experiment", "o*", "--config-dir=mine").out


@pytest.mark.integration
@pytest.mark.parametrize("module", ["metarun", "metarun.cli"])
def test_the_modules_are_the_command(place: Path, module: str) -> None:
    done = subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, f"metarun {__version__}\n")


def test_cfg_prints_the_composed_settings_and_runs_nothing(metarun: Command, place: Path) -> None:
    answer = metarun("--cfg", "job", "algo=fomaml", "seed=3")
    config = OmegaConf.create(answer.out)
    assert (config.algo.first_order, config.seed, config.eval.algo) == (True, 3, {})
    assert list(place.iterdir()) == []


def test_data(metarun: Command, place: Path) -> None:
    tiny = [text for text in TINY if text.startswith("dataset.")]
    answer = metarun("data", "glyphs", *tiny)
    assert answer.code == 0
    assert "train: 20 classes" in answer.out
    assert "kept in" in answer.out
    assert "drawn at first use" in metarun("data", "glyphs", "dataset.generator_seed=99", "--check").out
    assert "nothing to fetch" in metarun("data", "sinusoid").out
    assert metarun("data", "dataset=glyphs").err.startswith("metarun: dataset=glyphs: the first word is the name of")
    assert "not found in" in metarun("data", "omniglot", f"data_dir={place}", "--check").out
    assert list(place.iterdir()) == []


# A run


def test_a_run_leaves_what_is_promised(metarun: Command, place: Path) -> None:
    answer = metarun(*TINY)
    assert (answer.code, answer.err) == (0, "")
    (folder,) = (place / "outputs/maml-glyphs-5w1s").iterdir()
    assert folder.name.startswith("seed0-")
    promised = {"config.yaml", "metrics.jsonl", "metrics.csv", "train.log", "curves.png", "result.json", "choices.json"}
    promised |= {"checkpoints/last.pt", "checkpoints/best.pt", "scores/test.csv", "scores/test_inductive.csv"}
    assert {path for path in promised if not (folder / path).is_file()} == set()

    found = result(folder)
    row, inductive = found["test"]["test"], found["test"]["test_inductive"]
    assert 0 <= row["accuracy"]["mean"] <= 1
    assert row["accuracy"]["ci95"] > 0
    assert (row["tasks"], row["ways"], row["shots"], row["queries"]) == (20, 5, 1, 5)
    assert (row["transductive"], row["algo"]["norm"]) == (True, "batch")
    assert (inductive["transductive"], inductive["algo"]["norm"]) == (False, "per_query")
    assert row["task_hash"] == inductive["task_hash"]
    assert len(row["task_hash"]) == 64
    assert {"metarun", "python", "torch"} <= found["versions"].keys()
    assert "commit" in found
    assert (found["dataset"]["name"], len(found["dataset"]["sha256"])) == ("glyphs", 64)
    assert found["training"]["tasks_per_second"] > 0
    assert found["training"]["peak_memory_mib"] > 0
    assert found["config"]["trainer"]["steps"] == 4
    assert found["choices"]["algo"] == "maml"


@pytest.mark.integration
def test_the_last_line_names_the_folder_of_a_logger(metarun: Command, place: Path) -> None:
    pytest.importorskip("tensorboard")
    answer = metarun(*TINY, "hydra.run.dir=run", "logger=tensorboard")
    assert answer.code == 0, answer.err
    assert answer.out.splitlines()[-1].startswith(f"in {place}/run: result.json, ")
    assert answer.out.splitlines()[-1].endswith(", checkpoints/, tensorboard/")
    assert list((place / "run/tensorboard").iterdir())


@pytest.mark.integration
def test_other_places_for_the_same_run(metarun: Command, place: Path) -> None:
    """Where data lies and which logger draws is no part of what a run is: its folder stays the same."""
    assert metarun(*TINY).code == 0
    answer = metarun(*TINY, f"data_dir={place}")
    assert answer.code == 0
    assert "is finished already" in answer.out
    assert len(list((place / "outputs").glob("*/*"))) == 1


def test_pictures_of_ones_own_elsewhere_are_another_run(place: Path) -> None:
    """Of a named set it does not matter where a copy is; where pictures are kept in a run never does."""

    def folder(*overrides: str) -> str:
        return str(compose(["algo=protonet", *overrides]).hydra.run.dir)

    own, named = ("dataset=folder", "dataset.path=a"), ("dataset=cub", "dataset.path=a")
    assert folder(*own) != folder("dataset=folder", "dataset.path=b")
    assert folder(*own) == folder(*own, "dataset.placement=host")
    assert folder(*named) == folder("dataset=cub", "dataset.path=b", "dataset.placement=host")


@pytest.mark.integration
def test_the_same_command_twice(metarun: Command, train: Train) -> None:
    folder = train("run")
    before = contents(folder)
    answer = metarun(*TINY, "hydra.run.dir=run")
    assert answer.code == 0
    assert f"{folder} is finished already" in answer.out
    assert f"accuracy {100 * result(folder)['test']['test']['accuracy']['mean']:.2f}" in answer.out
    assert contents(folder) == before


@pytest.mark.integration
def test_resume_of_a_finished_run_and_of_one_that_lacks_its_test(metarun: Command, train: Train) -> None:
    folder = train("run")
    before = contents(folder)
    answer = metarun("resume", "run")
    assert answer.code == 0
    assert "is finished already" in answer.out
    assert contents(folder) == before

    scores = result(folder)["test"]["test"]["accuracy"]
    (folder / "result.json").unlink()
    assert metarun("resume", "run").code == 0
    assert result(folder)["test"]["test"]["accuracy"] == scores
    assert contents(folder)["metrics.jsonl"] == before["metrics.jsonl"]


@pytest.mark.integration
def test_methods_are_tested_on_the_same_tasks(train: Train) -> None:
    hashes = {
        result(train(algo, f"algo={algo}", f"seed={seed}"))["test"]["test"]["task_hash"]
        for seed, algo in enumerate(("maml", "protonet", "anil"))
    }
    assert len(hashes) == 1
    other = train("other", "eval.seed=1")
    assert result(other)["test"]["test"]["task_hash"] not in hashes


@pytest.mark.integration
def test_divergence_is_a_failure_not_a_mistake(metarun: Command, place: Path) -> None:
    answer = metarun(*TINY, "hydra.run.dir=run", "optimizer=sgd", "optimizer.lr=1e38")
    assert answer.code == 1
    assert answer.err.startswith("metarun: training diverged: the loss is nan at step 2; ")
    assert answer.err.count("\n") == 1
    assert not (place / "run/result.json").exists()
    assert (place / "run/error.txt").read_text() == answer.err.removeprefix("metarun: ")


# Configuration files of the user's own


@pytest.mark.integration
@pytest.mark.parametrize("how", ["--config-dir=mine", "hydra.searchpath=[file://mine]"])
def test_an_experiment_of_the_users_own(metarun: Command, place: Path, how: str) -> None:
    file = place / "mine/experiment/own.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("# @package _global_\ndefaults:\n  - override /algo: anil\nalgo:\n  inner_steps: 2\nseed: 8\n")
    answer = metarun(how, "experiment=own", *TINY, "hydra.run.dir=run")
    assert answer.code == 0, answer.err
    config = OmegaConf.load("run/config.yaml")
    assert (config.algo.name, config.algo.inner_steps, config.seed) == ("anil", 2, 8)
    assert result(Path("run"))["choices"]["experiment"] == "own"


# A later test


@pytest.mark.integration
def test_protonet_later_with_other_ways_and_checkpoint(metarun: Command, train: Train) -> None:
    folder = train("run", "algo=protonet")
    answer = metarun("evaluate", "run", "ways=8", "shots=2", "tasks=12", "checkpoint=last")
    assert answer.code == 0, answer.err
    again = json.loads((folder / "tests/ways=8-shots=2-tasks=12-checkpoint=last/result.json").read_text())
    row = again["test"]["test"]
    assert (row["ways"], row["shots"], row["tasks"]) == (8, 2, 12)
    assert (again["checkpoint"]["step"], again["checkpoint"]["name"]) == (4, str(folder / "checkpoints/last.pt"))
    assert "8-way 2-shot" in answer.out


@pytest.mark.integration
def test_maml_later_with_other_queries_and_steps(metarun: Command, train: Train) -> None:
    folder = train("run")
    assert metarun("evaluate", "run", "queries=9", "algo.inner_steps=3").code == 0
    row, *_ = json.loads((folder / "tests/queries=9-algo.inner_steps=3/result.json").read_text())["test"].values()
    assert (row["queries"], row["algo"]["inner_steps"]) == (9, 3)
    assert len(row["accuracy_by_step"]["mean"]) == 4


@pytest.mark.integration
def test_running_averages_at_a_later_test_are_those_of_a_run_that_asked_for_them(
    metarun: Command, train: Train
) -> None:
    """A checkpoint of a method that was tested with batch statistics has none: they are collected then."""
    folder, asked = train("run"), train("asked", "eval.algo.norm=running")
    assert metarun("evaluate", "run", "algo.norm=running", "checkpoint=last").code == 0
    assert metarun("evaluate", "asked", "checkpoint=last").code == 0
    later = json.loads((folder / "tests/algo.norm=running-checkpoint=last/result.json").read_text())["test"]
    first = json.loads((asked / "tests/checkpoint=last/result.json").read_text())["test"]
    assert later.keys() == {"test", "untrained", "pixels"}
    assert later["test"]["accuracy"] == first["test"]["accuracy"]
    assert later["test"]["accuracy"] != result(folder)["test"]["test"]["accuracy"]


@pytest.mark.integration
def test_the_same_test_again_gives_the_same_scores(metarun: Command, train: Train) -> None:
    folder = train("run")
    before = contents(folder)
    for _ in range(2):
        assert metarun("evaluate", "run").code == 0
        for name, row in result(folder)["test"].items():
            again = result(folder / "tests/again")["test"][name]
            assert {**again, "seconds": 0} == {**row, "seconds": 0}
            scores = f"scores/{name}.csv"
            assert (folder / "tests/again" / scores).read_bytes() == before[scores]
    after = contents(folder)
    assert {name: after[name] for name in before} == before


@pytest.mark.integration
def test_the_whole_way_in_a_process_of_its_own(metarun_process: Command, place: Path) -> None:
    answer = metarun_process(*TINY, "hydra.run.dir=run")
    assert (answer.code, answer.err) == (0, "")
    assert "accuracy" in answer.out
    answer = metarun_process("evaluate", "run")
    assert (answer.code, answer.err) == (0, "")
    assert sys.executable not in answer.out
