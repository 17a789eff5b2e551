"""The scripts: the benchmark compares equals, the page of results and the table of methods tell what there is."""

import argparse
import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from metarun.registry import known

SCRIPTS = Path(__file__).parents[1] / "scripts"


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"scripts_{name}", SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return loaded("benchmark")


@pytest.fixture(scope="module")
def results() -> ModuleType:
    return loaded("results")


@pytest.fixture(scope="module")
def methods() -> ModuleType:
    return loaded("methods")


SMALL = {"backbone": {"name": "conv4_strided", "filters": 4}, "tasks": 2, "queries": 3}


@pytest.mark.parametrize("item", ["W1q1", "W2so", "W2fo", "W3omni"])
def test_every_implementation_has_the_plain_loops_meta_gradient(benchmark, item):
    from contenders import PEERS, WORK  # scripts/, which the benchmark has put on the path

    small = {"backbone": {**WORK[item].backbone, "filters": 4}, "image": (1, 28, 28), "ways": 5, "tasks": 2}
    work = replace(WORK[item], **small)
    peers = [name for name in PEERS if work.algo["name"] == "maml" and importlib.util.find_spec(name)]
    for name in [*benchmark.OWN, *peers]:
        # torchopt has no first order, and PyTorch no second derivative in the shift of a norm without scale
        if "compiled" not in name and (name, item) not in [("torchopt", "W2fo"), ("torchopt", "W1q1")]:
            assert benchmark.disagreement(name, work, "cpu") < benchmark.TOLERANCE, name


def test_a_wrong_meta_gradient_is_noticed(benchmark, monkeypatch):
    import contenders

    plain = contenders.plain
    monkeypatch.setattr(contenders, "plain", lambda net, work: plain(net, replace(work, algo=contenders.maml(0.3, 1))))
    assert benchmark.disagreement("metarun", replace(contenders.WORK["W1q1"], **SMALL), "cpu") > 1e-3


def test_processes_take_turns_and_workers_share(benchmark):
    args = argparse.Namespace(device="cpu", threads=2, allocator="shipped", rounds=2)
    names = [benchmark.PLAIN, "metarun", "metarun, 2 workers"]
    times, memory, remarks = benchmark.measure("W1q1", names, args, SMALL)
    assert {name: len(row) for name, row in times.items()} == dict.fromkeys(names, 2)
    assert memory.keys() == set(names)
    assert len(remarks) == 1
    rows = benchmark.table(times, memory, 2, None, 1.0)
    assert [row.split("|")[1].strip() for row in rows[2:]] == names


def test_ratios_pair_the_rounds(benchmark):
    """Per round the ratios are 2, 4 and 2; the ratio of the medians would be 3. 1 GFLOP in 10 ms is half of 200."""
    times = {"metarun": [10.0, 10.0, 20.0], "plain loop": [20.0, 40.0, 40.0]}
    lines = benchmark.table(times, {"metarun": 5.0, "plain loop": 6.0}, tasks=32, gflop=1.0, peak=200.0)
    assert lines[2] == "| metarun | 10.0 | 2.00 | 3200 | 5 | 50 % |"
    assert lines[3] == "| plain loop | 40.0 | 1.00 | 800 | 6 | 12 % |"


def omniglot_result() -> dict[str, Any]:
    row = {"ways": 5, "shots": 1, "tasks": 2000, "algo": {"name": "maml", "inner_steps": 3}}
    return {
        "config": {"ways": 5, "shots": 1, "seed": 1, "dataset": {"name": "omniglot", "split": "random"}},
        "choices": {"experiment": "maml/omniglot_5w1s", "algo": "maml"},
        "device": "x86_64, 2 threads",
        "commit": "0123456789abcdef0123456789abcdef01234567-dirty",
        "checkpoint": {"name": "best", "step": 7500},
        "training": {"steps": 8000, "seconds": 4830.4, "tasks_per_second": 53.4},
        "test": {
            "test": row | {"accuracy": {"mean": 0.98125, "ci95": 0.0025}, "queries": 1, "transductive": True},
            "test_inductive": row | {"accuracy": {"mean": 0.96, "ci95": 0.003}, "queries": 1, "transductive": False},
        },
    }


def sinusoid_result() -> dict[str, Any]:
    steps = {"mean": [3.5, 0.7, 0.5], "ci95": [0.1, 0.05, 0.04]}
    row = {"ways": 1, "shots": 5, "queries": 100, "tasks": 600, "transductive": False, "algo": {"inner_steps": 2}}
    return {
        "config": {"ways": 1, "shots": 5, "seed": 0, "dataset": {"name": "sinusoid"}},
        "choices": {"experiment": "maml/sinusoid", "algo": "maml"},
        "device": "x86_64, 2 threads",
        "commit": None,
        "checkpoint": {"name": "best", "step": 70000},
        "training": {"steps": 70000, "seconds": 41.0, "tasks_per_second": 4000.0},
        "test": {"test": row | {"mse": {"mean": 0.5, "ci95": 0.04}, "mse_by_step": steps}},
    }


def write_run(folder: Path, result: dict[str, Any], overrides: str) -> None:
    (folder / ".hydra").mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(result))
    (folder / ".hydra" / "overrides.yaml").write_text(overrides)


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    elsewhere = "- device=cpu\n- data_dir=/somewhere\n"
    write_run(tmp_path / "a", sinusoid_result(), "- experiment=maml/sinusoid\n- ++eval.algo.inner_steps=2\n")
    write_run(tmp_path / "b", omniglot_result(), f"- experiment=maml/omniglot_5w1s\n- seed=1\n{elsewhere}")
    write_run(tmp_path / "b" / "tests" / "again", {"test": {}}, "[]")
    return tmp_path


def test_the_page_has_a_line_for_every_row_of_every_run(results, outputs):
    lines = results.page(results.find([outputs])).splitlines()
    run = "| 2000 | 7500 of 8000 | 1 h 21 min | 53 | x86_64, 2 threads | 1 | 0123456-dirty |"
    task = "| omniglot (random) | 5-way 1-shot, 1 query per class |"
    assert lines[6:9] == [
        f"| maml/omniglot_5w1s | test {task} 98.12 ± 0.25 % | 98.7 ± 0.4[^maml] | transductive {run}",
        f"| maml/omniglot_5w1s | test_inductive {task} 96.00 ± 0.30 % |  | inductive {run}",
        "| maml/sinusoid | test | sinusoid | 5 points | mse 0.500 ± 0.040 |  | inductive | 600 | 70000 of 70000 | 41 s "
        "| 4000 | x86_64, 2 threads | 0 |  |",
    ]


def test_the_page_shows_sources_inner_steps_and_commands(results, outputs):
    page = results.page(results.find([outputs]))
    assert "\n[^maml]: Finn, Abbeel, Levine" in page
    assert "[^protonet]" not in page
    assert "| 1 | 0.700 ± 0.050 | 0.67[^maml] |" in page
    assert "- `test`: " in page
    assert "- `queries15`: " not in page
    assert "metarun experiment=maml/omniglot_5w1s seed=1\n" in page
    assert "metarun experiment=maml/sinusoid eval.algo.inner_steps=2\n" in page
    assert "/somewhere" not in page


def test_the_page_does_not_depend_on_folders(results, outputs):
    page = results.page(results.find([outputs]))
    (outputs / "a").rename(outputs / "c")
    assert results.page(results.find([outputs / "c", outputs / "b", outputs])) == page


def test_only_an_experiments_own_test_stands_beside_a_published_figure(results):
    result = omniglot_result()
    run = results.Run(result, overrides=None)
    assert run.published("test") == "98.7 ± 0.4[^maml]"
    assert run.published("test_inductive") == ""
    result["choices"]["experiment"] = None
    assert run.published("test") == ""


def test_readmes_table_of_methods_is_what_the_script_writes(methods):
    readme = methods.README.read_text(encoding="utf-8")
    assert readme == methods.rewritten(readme, methods.find([methods.RESULTS])), "run: python scripts/methods.py"
    assert {name for name in known("algo") if f"\n| `{name}` | " not in readme} == set()


def test_a_methods_line_shows_its_class_its_yaml_and_its_results(methods, results):
    run, another_seed, anils = omniglot_result(), omniglot_result(), omniglot_result()
    another_seed["config"]["seed"] = 2
    anils["choices"]["algo"] = "anil"
    runs = [results.Run(result, overrides=None) for result in (anils, run, another_seed)]
    comment = "MAML: an initialisation (Finn et al. 2017)"
    paper = "[Finn et al. 2017](https://arxiv.org/abs/1703.03400)"
    figure = "omniglot, 5-way 1-shot, 1 query per class: 98.12 ± 0.25 % (published 98.7 ± 0.4)"
    assert methods.row("maml", comment, runs)[0:3:2] == ("`maml`", "an initialisation")
    assert methods.row("maml", comment, runs)[4:] == ("batch: transductive", paper, figure)
    assert methods.row("maml", comment, [])[-1] == "glyphs only"


def test_a_method_that_is_anothers_class_is_described_by_its_own_yaml(methods):
    cells = methods.row("fomaml", "FOMAML: MAML, but quick (Finn et al. 2017, section 5.2)", [])
    assert cells[:3] == ("`fomaml`", "gradient", "MAML, but quick")
    assert cells[5].startswith("[Finn et al. 2017, section 5.2](https")
    with pytest.raises(SystemExit, match=r"configs/algo/fomaml.yaml begin with the comment"):
        methods.row("fomaml", "FOMAML, without a source", [])
