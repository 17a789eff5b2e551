"""`metarun probe`: what is asked for is looked at, kept, and told."""

import json
from pathlib import Path
from typing import Any

import pytest

from metarun.cli.compose import describe_options
from metarun.config.load import read_option
from metarun.config.registry import check, declaration, known
from tests.conftest import TINY, Command

FAST = ("eval.probe_tasks=10", "ways=3", "shots=2", "queries=2", "hydra.run.dir=run")


def read(name: str, place: str = "run") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(place, "probes", f"{name}.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("name", known("probe"))
def test_the_file_of_a_probe_has_all_of_its_settings(name: str) -> None:
    problems: list[str] = []
    settings = check("probe", read_option("probe", name), problems)
    assert (problems, settings.keys()) == ([], declaration("probe", name).settings.keys())
    assert describe_options("probe")[name]


def test_noise_of_zero_is_the_runs_own_test(metarun: Command) -> None:
    assert metarun("algo=protonet", *TINY, *FAST, "eval.tasks=10").code == 0
    answer = metarun("probe", "run", "noise", "imbalance", "imbalance.most=4", "imbalance.queries=1", "tasks=10")
    assert answer.code == 0, answer.err
    own = json.loads(Path("run/result.json").read_text(encoding="utf-8"))["test"]["test"]["accuracy"]
    place = next(Path("run/tests").iterdir())
    found = read("noise", str(place))
    clean = [row for row in found["table"] if row["rate"] == 0]
    assert [row["accuracy"] for row in clean] == [own] * 3
    assert all(row["lost"] == {"mean": 0.0, "ci95": 0.0} for row in clean)
    balanced, *uneven = read("imbalance", str(place))["table"]
    assert (balanced["concentration"], balanced["lost"]["mean"], len(uneven)) == ("balanced", 0.0, 3)
    assert sorted(file.name for file in (place / "probes").iterdir()) == [
        f"{name}.{kind}" for name in ("imbalance", "noise") for kind in ("json", "png")
    ]


def test_a_run_is_probed_at_its_end_as_the_command_does(metarun: Command) -> None:
    probes = "eval.probes=[noise,imbalance]"
    assert metarun("algo=protonet", *TINY, *FAST, "shots=1", probes).code == 0
    log = Path("run/train.log").read_text(encoding="utf-8")
    assert "probe imbalance is left out: eval.shots is 1" in log
    first = Path("run/probes/noise.json").read_bytes()
    assert "mean accuracy over kinds and rates of noise" in log
    assert metarun("probe", "run", "noise").code == 0
    assert Path("run/probes/noise.json").read_bytes() == first


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nois"], "probe.name is 'nois': choose from"),
        (["noise", "noise.rate=1"], "probe noise.rate: no such setting (did you mean rates?)"),
        (["noise", "noise.rates=[2]"], "probe noise.rates[0] is 2.0: it must be at least 0 and at most 1"),
        (["noise", "corruption.parts=[query]"], "corruption is set, but is none of the probes noise"),
        (["noise", "noise.rates=[]"], "noise.kinds or noise.rates is empty"),
        (["corruption", "corruption.small={fog:[1]}"], "corruption has no fog: choose from noise, blur"),
        (["shift", "shift.datasets={other: {name: omniglott}}"], "shift.datasets.other: dataset.name is 'omniglott': "),
        (["shift", "shift.datasets={turned: {turn: 90}}"], "shift.datasets.turned: dataset.turn: no such setting: "),
        (["imbalance"], "eval.shots is 1: shots cannot differ then"),
        (["noise", "split=val"], "eval.split is val: outliers are of validation classes"),
    ],
)
def test_a_mistake_is_told_in_a_line(metarun: Command, words: list[str], told: str) -> None:
    untrained = ("algo=simpleshot", "backbone=raw", "eval.tasks=2", "device=cpu")
    assert metarun(*untrained, *TINY[:4], *FAST, "shots=1").code == 0
    answer = metarun("probe", "run", *words)
    assert (answer.code, len(answer.err.splitlines())) == (2, 1)
    assert answer.err.startswith(f"metarun: {told}")


def test_an_unknown_probe_is_told_before_training(metarun: Command) -> None:
    answer = metarun(*TINY, "eval.probes=[noize]", "hydra.run.dir=run")
    assert answer.code == 2
    assert "probe.name is 'noize'" in answer.err
    assert not Path("run/checkpoints").exists()


def test_a_probe_of_pictures_is_not_for_numbers(metarun: Command) -> None:
    answer = metarun("dataset=sinusoid", "backbone=mlp", "eval.probes=[corruption]", "device=cpu", "hydra.run.dir=run")
    assert answer.code == 2
    assert answer.err == "metarun: probe corruption is for classification, and this run is of regression\n"


@pytest.mark.integration
@pytest.mark.parametrize("algo", ["maml", "protonet", "matchingnet", "mann", "reptile", "snail", "simpleshot"])
def test_every_probe_looks_at_a_method_or_says_why_not(metarun: Command, algo: str) -> None:
    small = ("shift.ways=[2,3,5]", "shift.shots=[1,2]", "imbalance.most=4", "embedding.tasks=2", "attack.steps=2")
    shorter = (
        "landscape.points=3",
        "landscape.tasks=2",
        "corruption.small={blur:[1],noise:[0.1,0.2]}",
        "tasks=4",
    )
    own = ("algo.attention=[[4,4],[4,4]]", "algo.filters=4") if algo == "snail" else ()
    assert metarun(f"algo={algo}", *TINY, *FAST, *own).code == 0
    answer = metarun("probe", "run", *small, *shorter)
    assert answer.code == 0, answer.err
    (place,) = Path("run/tests").iterdir()
    for name in known("probe"):
        left_out = f"{name}: left out, " in answer.out
        assert left_out != (place / "probes" / f"{name}.json").is_file(), answer.out
        if not left_out:
            assert (place / "probes" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    told = {line.partition(":")[0] for line in answer.out.splitlines() if ": left out, " in line}
    if algo in ("maml", "reptile"):
        assert told == {"attention"}
    if algo in ("protonet", "matchingnet"):
        assert told == {"reuse", "landscape", "adaptation"} | ({"attention"} if algo != "matchingnet" else set())
