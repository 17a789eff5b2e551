"""The grid of experiments: every published cell has one, which names its figure; `_paper` is it at full length."""

import dataclasses
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from metarun.cli.compose import change, describe_options
from metarun.config.load import load_settings, resolve
from metarun.config.registry import declaration
from metarun.datasets.storage import known_sets
from metarun.engine.build import Experiment
from metarun.reports.published import Setup, find_figure, read_figures
from tests.cli.test_configs import REAL, SAME_CODE, composed, shrunk
from tests.support.tiny_pictures import encoded, write

EXPERIMENTS = describe_options("experiment")  # name -> its first line
PAPER = [name for name in EXPERIMENTS if name.endswith("_paper")]
SHORT = [name for name in EXPERIMENTS if name not in PAPER]

WITHOUT = {  # published cells that no experiment is for
    ("protonet", "omniglot", "5w5s"): "protonet/omniglot with shots=5",
    ("protonet", "omniglot", "20w5s"): "the same model",
    ("snail", "miniimagenet", "5w1s"): "its deep residual embedding is not here",
    ("snail", "miniimagenet", "5w5s"): "the same",
    ("metanet", "miniimagenet", "5w1s"): "its test draws three examples per class",
    ("imaml", "miniimagenet", "5w1s"): "its inner steps, rate and lambda are not known",
}

LENGTH_LIKE = {  # what a `_paper` may set anew
    *("trainer.steps", "trainer.tasks_per_step", "trainer.eval_every", "trainer.log_every", "trainer.patience"),
    "trainer.keep_best",  # for the ensemble of MAML++
    *("schedule.name", "schedule.every", "schedule.gamma", "schedule.final"),
    "optimizer.eps",
    *("queries", "eval.queries"),  # where a short run trains on more than the paper
    *("eval.checkpoint", "eval.tasks", "eval.val_tasks"),
    "algo.inner_lr",  # where the short one's is for its length, or not the printed one
    *("algo.inner_steps", "algo.cg_steps"),  # of which iMAML's short ones have less, and larger ones
    *("algo.multi_step_steps", "algo.batch_size"),
}
TRAINED_ON = "validation classes held out, not trained on"
STILL_ANOTHER = {  # what the report will say of a `_paper`
    "protonet/omniglot_paper": [TRAINED_ON],
    "reptile/omniglot_5w1s_paper": [TRAINED_ON],
    "reptile/omniglot_5w5s_paper": [TRAINED_ON],
    # the code's command; 100,000 are for 5 ways
    "reptile/omniglot_20w1s_paper": ["training steps 200000, not 100000", TRAINED_ON],
    "reptile/omniglot_20w5s_paper": ["training steps 200000, not 100000", TRAINED_ON],
    "relationnet/omniglot_5w1s_paper": ["checkpoint best, not test", TRAINED_ON],
    "relationnet/omniglot_5w5s_paper": ["checkpoint best, not test", TRAINED_ON],
    "relationnet/omniglot_20w1s_paper": ["checkpoint best, not test", TRAINED_ON],
}

CellKey = tuple[str, str, str]  # algo, dataset, "5w1s" or "5s"
Printed = tuple[float, float | None]


@cache
def values_of(name: str) -> dict[str, Any]:
    return resolve(composed(f"experiment={name}"))


def setups(name: str) -> list[Setup]:
    """The tests that an experiment asks for, its own first."""
    values = values_of(name)
    test, traits = values["eval"], declaration("dataset", values["dataset"]["name"]).traits
    own = values["dataset"]
    found = []
    for how in (test, *({**test, **changes} for changes in test["variants"].values())):
        algo = {**values["algo"], **test["algo"], **how["algo"]}
        found.append(
            Setup(
                algo=str(composed(f"experiment={name}").hydra.runtime.choices.algo),
                dataset=" -> ".join(
                    str(data.get("collection", data["name"])) for data in (own, test["dataset"]) if data
                ),
                config=values,
                metric=traits.headline,
                kind=traits.kind,
                ways=how["ways"],
                shots=how["shots"],
                queries=how["queries"],
                transductive=algo.get("norm") == "batch",
                inner_steps=algo.get("inner_steps"),
                steps=values["trainer"]["steps"],
                checkpoint=test["checkpoint"],
            )
        )
    return found


def dataset(name: str) -> str:
    return setups(name)[0].dataset


def cells(name: str) -> set[CellKey]:
    own = values_of(name)["dataset"]
    place = (own.get("test_tasks"), own.get("arms"))
    return {(setup.algo, trials(setup.dataset, *place), setup.cell) for setup in setups(name)}


def trials(dataset: str, test_tasks: str | None, arms: int | None) -> str:
    """Lake's published runs are no episodes, and bandits differ in their arms: their cells are their own."""
    return "runs" if test_tasks == "runs" else f"{dataset} with {arms} arms" if arms else dataset


@cache
def printed() -> dict[CellKey, set[Printed]]:
    """All that published.yaml has for a cell: in both modes, or after several numbers of inner steps."""
    found: dict[CellKey, set[Printed]] = {}
    for figure in read_figures():
        own = (figure.settings.get(f"dataset.{key}") for key in ("test_tasks", "arms"))
        place = trials(figure.dataset, *own)
        found.setdefault((figure.algo, place, figure.cell), set()).add((figure.value, figure.plus_minus))
    return found


def named(line: str) -> set[Printed]:
    """The figures in a line: "98.70 ± 0.40", "0.35"."""
    pairs = re.findall(r"(-?\d+\.\d+)(?: ± (\d+\.\d+))?", line)
    return {(float(value), float(plus_minus) if plus_minus else None) for value, plus_minus in pairs}


@pytest.mark.integration
def test_every_published_cell_has_an_experiment_and_no_two_share_a_folder() -> None:
    covered = set.union(*(cells(name) for name in SHORT))
    assert printed().keys() - covered == WITHOUT.keys()
    folders = [composed(f"experiment={name}").hydra.run.dir for name in SHORT]
    assert len(set(folders)) == len(folders)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_first_line_has_the_published_figures(name: str) -> None:
    shown = [printed()[cell] for cell in cells(name) & printed().keys()]
    if shown:
        methods = {cell[:2] for cell in cells(name)}
        others = (entry for cell, entry in printed().items() if cell[:2] in methods)
        assert named(EXPERIMENTS[name]) <= set.union(*others)
        by_instance = "at the 2nd" in EXPERIMENTS[name]  # of ten instances a line names two
        assert by_instance or set.union(*shown) <= named(EXPERIMENTS[name])


@pytest.mark.parametrize("name", SHORT)
def test_a_name_says_what_is_tested(name: str) -> None:
    if match := re.search(r"_(\d+)w(\d+)s", name):
        assert (int(match[1]), int(match[2])) == (setups(name)[0].ways, setups(name)[0].shots)


@pytest.mark.parametrize("name", PAPER)
def test_at_the_papers_length_nothing_else_differs(name: str) -> None:
    short = name.removesuffix("_paper")
    assert short in SHORT
    before, after = (flat(values_of(one)) for one in (short, name))
    differing = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    assert differing, "the same run as the short one, in the same folder"
    assert differing <= LENGTH_LIKE


@pytest.mark.parametrize("name", PAPER)
def test_at_the_papers_length_the_protocol_is_the_papers(name: str) -> None:
    setup = setups(name)[0]
    theirs = find_figure(setup)
    assert theirs is not None
    assert theirs.deviations(setup) == STILL_ANOTHER.get(name, [])


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


@pytest.mark.integration
@pytest.mark.parametrize("name", [name for name in SHORT if f"experiment={name}" in SAME_CODE])
def test_what_is_not_run_is_built_on_its_data(
    data_folder: str | None, place: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Networks are small here, tasks are not: they have to fit into the splits. The others test_configs.py runs."""
    if dataset(name) in REAL and (data_folder is None or not Path(data_folder, REAL[dataset(name)]).is_dir()):
        pytest.skip(f"{dataset(name)} is real data: set METARUN_DATA to the folder that has it")
    values = {**shrunk(values_of(name)), "data_dir": data_folder}
    if elsewhere := values["eval"]["dataset"].get("collection"):
        values = change(values, [f"eval.dataset.path={write_test_classes(elsewhere, place / 'data', monkeypatch)}"])
    experiment = Experiment.build(load_settings(values))
    for how in experiment.plan_rows().values():
        experiment.build_tester(how, "test")
    experiment.build_tester(experiment.plan_rows()["test"], "val")


def write_test_classes(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The first 20 test classes of a set in its published form, of 20 equal pictures each."""
    labels = known_sets.read_class_lists(name)["test"][:20]
    small = dataclasses.replace(known_sets.KNOWN_SETS[name], classes=(0, 0, len(labels)))
    monkeypatch.setitem(known_sets.KNOWN_SETS, name, small)
    for i, label in enumerate(labels):
        for j in range(20):
            write(root / label / f"{j}.png", encoded((i, i, j)))
    return root
