"""A plain command takes the settings that its method has on its data, and what is typed holds."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from metarun.cli.compose import compose
from metarun.cli.hydra_app import Request, search
from metarun.cli.outlook import announce
from metarun.cli.plain import NONE, Loader, read_cell
from metarun.cli.sweep import plan
from metarun.config.load import identity, load_settings, resolve
from tests.conftest import Command


@cache
def composed(words: str) -> tuple[DictConfig, dict[str, Any]]:
    config = compose(words.split())
    load_settings(resolve(config))
    return config, identity(resolve(config))


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("maml/omniglot_20w5s", ("omniglot", 20, 5)),
        ("lstm/omniglot_5w", ("omniglot", 5, None)),
        ("maml/sinusoid", ("sinusoid", None, None)),
        ("maml/omniglot_5w1s_paper", ("omniglot_5w1s_paper", None, None)),
        ("lstm/omniglot_15w_strings", ("omniglot_15w_strings", None, None)),
    ],
)
def test_a_name_says_what_an_experiment_is_for(name: str, cell: tuple[str, int | None, int | None]) -> None:
    assert read_cell(name)[1:] == cell


@pytest.mark.parametrize(
    ("plain", "experiment"),
    [
        ("algo=maml dataset=omniglot", "maml/omniglot_5w1s"),
        ("algo=maml dataset=omniglot ways=20 shots=5", "maml/omniglot_20w5s"),
        ("dataset=sinusoid", "maml/sinusoid"),
        ("algo=protonet dataset=omniglot", "protonet/omniglot"),
        ("algo=lstm dataset=omniglot backbone.hidden=[3] seed=2", "lstm/omniglot_5w backbone.hidden=[3] seed=2"),
        ("algo=maml dataset=omniglot trainer.steps=3 seed=1", "maml/omniglot_5w1s trainer.steps=3 seed=1"),
    ],
)
def test_it_is_the_run_of_the_experiment(plain: str, experiment: str) -> None:
    (config, values), (theirs, expected) = composed(plain), composed(f"experiment={experiment}")
    assert values == expected
    assert config.hydra.run.dir == theirs.hydra.run.dir
    assert config.hydra.runtime.choices.experiment == experiment.partition(" ")[0]
    assert list(config.hydra.overrides.task) == plain.split()


def test_the_form_of_a_dataset_is_that_of_the_composed_one() -> None:
    with search() as loader:
        assert isinstance(loader, Loader)
        names = loader.get_group_options("dataset")
        assert len({loader.find_form(name) for name in names}) > 10
        for name in names:
            assert loader.find_form(name) == compose([f"dataset={name}", NONE]).dataset.name


def test_a_group_that_is_typed_brings_its_own_settings() -> None:
    """The experiment has `backbone: {filters: 32}` and a rate for Adam, of which neither fits what is typed."""
    _, values = composed("algo=cavia dataset=omniglot backbone=mlp backbone.hidden=[5] optimizer=sgd")
    _, bare = composed("algo=cavia dataset=omniglot backbone=mlp backbone.hidden=[5] optimizer=sgd experiment=null")
    _, theirs = composed("experiment=cavia/omniglot_5w1s")
    assert (values["backbone"], values["optimizer"]) == (bare["backbone"], bare["optimizer"])
    assert values["optimizer"]["lr"] != theirs["optimizer"]["lr"]
    assert (values["trainer"], values["algo"]) == (theirs["trainer"], theirs["algo"])
    _, same = composed("algo=cavia dataset=omniglot backbone=conv4")
    assert same == theirs


def test_a_test_has_the_ways_that_are_typed() -> None:
    _, theirs = composed("experiment=protonet/omniglot")
    assert (theirs["ways"], theirs["eval"]["ways"]) == (60, 5)
    for words, ways in (("ways=20", 20), ("ways=20 eval.ways=10", 10)):
        _, values = composed(f"algo=protonet dataset=omniglot {words}")
        assert (values["ways"], values["eval"]["ways"], values["eval"]["queries"]) == (20, ways, 15)


@pytest.mark.parametrize(
    ("words", "like"),
    [
        ("algo=maml dataset=omniglot ways=10", "maml/omniglot_5w1s"),
        ("algo=maml dataset=cub shots=5", "maml/miniimagenet_5w5s"),
        ("algo=protonet dataset=cub", "protonet/miniimagenet_5w1s"),
        ("algo=protonet dataset=banking77 ways=7", "protonet/clinc150_5w1s"),
    ],
)
def test_elsewhere_the_nearest_experiment_says_how_to_train(words: str, like: str) -> None:
    (config, values), (_, bare) = composed(words), composed(f"{words} experiment=null")
    _, theirs = composed(f"experiment={like}")
    assert config.hydra.runtime.choices.experiment is None
    assert config.hydra.runtime.choices.like == like
    for part in ("algo", "backbone", "optimizer", "schedule", "trainer"):
        assert values[part] == theirs[part]
    assert values["eval"] == {**bare["eval"], "algo": theirs["eval"]["algo"]}
    assert [values[key] for key in ("ways", "shots", "queries")] == [bare[key] for key in ("ways", "shots", "queries")]
    if "omniglot" not in words:
        assert values["dataset"] == bare["dataset"]


@pytest.mark.parametrize(
    "words", ["", "algo=nil dataset=cub", "algo=protonet dataset=glyphs", "algo=maml dataset=bandit"]
)
def test_where_there_is_none_the_groups_settings_hold(words: str) -> None:
    assert composed(words)[1] == composed(f"{words} experiment=null")[1]


def test_each_job_of_a_sweep_has_its_own() -> None:
    jobs, _ = plan(Request(["algo=maml,protonet", "dataset=omniglot", "seed=1,2"], multirun=True))
    expected = [
        composed(f"algo={algo} dataset=omniglot seed={seed}")[0].hydra.run.dir
        for algo in ("maml", "protonet")
        for seed in (1, 2)
    ]
    assert [str(job.folder.path).endswith(folder) for job, folder in zip(jobs, expected, strict=True)] == [True] * 4


def test_the_first_line_says_how_long_it_takes(tmp_path: Path) -> None:
    """`metarun/cli/speeds.yaml` has 60.2 tasks per second: 10000 steps of 32 take 89 minutes."""

    def say(words: str) -> str | None:
        config, _ = composed(words)
        return announce(resolve(config), config.hydra, tmp_path / "run")

    said = {words: say(words) for words in ("", "algo=maml dataset=omniglot device=cpu")}
    assert said == {
        "": None,
        "algo=maml dataset=omniglot device=cpu": "settings of maml/omniglot_5w1s: 10000 steps, "
        "about 1 h 29 min of training, as on AMD EPYC, 1 thread; trainer.steps=300 is shorter",
    }
    assert (
        say("algo=maml dataset=omniglot ways=10")
        == "trained as in maml/omniglot_5w1s: 10000 steps, not timed yet; trainer.steps=300 is shorter"
    )


@pytest.mark.integration
def test_a_run_says_it_first_and_shows_it(metarun: Command) -> None:
    words = ("algo=ml3", "dataset=sinusoid", "trainer.steps=2", "eval.tasks=4", "eval.val_tasks=4", "device=cpu")
    shown = metarun(*words, "--cfg", "job")
    assert shown.code == 0
    assert "shots: 100" in shown.out
    answer = metarun(*words)
    assert answer.code == 0, answer.err
    assert answer.out.startswith("settings of ml3/sinusoid: 2 steps, about 0 s of training, as on AMD EPYC, 1 thread\n")
    answer = metarun("--multirun", *words, "seed=0,1")  # the first is done
    assert "[2/2] seed=1\nsettings of ml3/sinusoid: 2 steps" in answer.out, answer.out
