"""The scripts: the benchmark compares equals, the page of results and the table of methods tell what there is."""

import argparse
import json
import math
import mmap
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import benchmark
import contenders
import growth
import methods
import peers
import pytest
import results
import sampling
import timed
import torch
import workload
from contenders import disagreement, implementations
from workload import WORK, maml

from metarun.registry import known
from metarun.types import TaskShape

SMALL = {"backbone": {"name": "conv4_strided", "filters": 4}, "tasks": 2, "queries": 3}


@pytest.mark.parametrize("item", ["W1q1", "W2so", "W2fo", "W3omni", "W4"])
def test_every_implementation_has_the_plain_loops_meta_gradient(item):
    small = {"backbone": {**WORK[item].backbone, "filters": 4}, "image": (1, 28, 28), "ways": 5, "tasks": 2}
    work = replace(WORK[item], **small)
    for name in implementations(work, "cpu"):
        # torchopt has no first order, and PyTorch no second derivative in the shift of a norm without scale
        if "compiled" not in name and (name, item) not in [("torchopt", "W2fo"), ("torchopt", "W1q1")]:
            assert disagreement(name, work, "cpu") < benchmark.TOLERANCE, name


@pytest.mark.parametrize(
    ("item", "loop", "other"),
    [("W1q1", "plain_maml", maml(0.3, 1)), ("W4", "plain_reptile", {**WORK["W4"].algo, "inner_lr": 1.01e-3})],
)
def test_a_wrong_meta_gradient_is_noticed(monkeypatch, item, loop, other):
    plain = getattr(peers, loop)
    monkeypatch.setattr(peers, loop, lambda net, work: plain(net, replace(work, algo=other)))
    assert disagreement("metarun", replace(WORK[item], **SMALL), "cpu") > 1e-3


def test_metaruns_step_hands_on_what_its_trainer_does(monkeypatch):
    starts = []
    monkeypatch.setattr(contenders, "algo_of", lambda *how: starts.append(workload.algo_of(*how)) or starts[-1])
    with contenders.Metarun().ready(replace(WORK["W4"], **SMALL), torch.float64, "cpu") as (step, _):
        step()
        step()
    _, theta = starts[0]
    assert theta["clock"]["steps"].item() == pytest.approx(2 * WORK["W4"].algo["inner_steps"])
    assert all(moment.any() for moment in theta["moments"].values())


def test_processes_take_turns_and_workers_share():
    args = argparse.Namespace(device="cpu", threads=2, allocator="shipped", rounds=2)
    names = [benchmark.PLAIN, "metarun, 2 workers"]
    times, memory, remarks = benchmark.measure("W4", names, args, SMALL)
    assert {name: len(row) for name, row in times.items()} == dict.fromkeys(names, 2)
    assert memory.keys() == set(names)
    assert len(remarks) == 1
    rows = benchmark.table(times, memory, 2, None, 1.0)
    assert [row.split("|")[1].strip() for row in rows[2:]] == names


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_peak_memory_is_what_a_step_adds():
    timed.forget_peak("cpu")
    before = timed.peak_mib("cpu")
    with mmap.mmap(-1, 64 * 2**20) as memory:
        memory[:: mmap.PAGESIZE] = b"x" * (len(memory) // mmap.PAGESIZE)
    assert timed.peak_mib("cpu") - before == pytest.approx(64, abs=4)
    timed.forget_peak("cpu")
    assert timed.peak_mib("cpu") - before == pytest.approx(0, abs=4)


def test_those_that_disagree_are_left_out(monkeypatch):
    found = {"metarun": 1e-3, "metarun, loop": math.nan}
    monkeypatch.setattr(benchmark, "disagreement", lambda name, work, device: found[name])
    times, _, remarks = benchmark.measure("W4", list(found), argparse.Namespace(device="cpu", rounds=1))
    assert not times
    assert [remark.split(": left out")[0] for remark in remarks[1:]] == list(found)


def test_ratios_pair_the_rounds():
    """Per round the ratios are 2, 4 and 2; the ratio of the medians would be 3. 1 GFLOP in 10 ms is half of 200."""
    times = {"metarun": [10.0, 10.0, 20.0], "plain loop": [20.0, 40.0, 40.0]}
    lines = benchmark.table(times, {"metarun": 5.0, "plain loop": 6.0}, tasks=32, gflop=1.0, peak=200.0)
    assert lines[2] == "| metarun | 10.0 | 2.00 | 3200 | 5 | 50 % |"
    assert lines[3] == "| plain loop | 40.0 | 1.00 | 800 | 6 | 12 % |"


def test_growth_times_every_size_and_leaves_out_who_cannot(monkeypatch, tmp_path, capsys):
    def measured(item: str, names: list[str], args: argparse.Namespace, changes: dict[str, Any]) -> Any:
        return {name: [1.0, changes["tasks"], 1000.0] for name in names}, {}, []

    monkeypatch.setattr(growth, "measure", measured)
    growth.main(argparse.Namespace(folder=tmp_path, device="cpu", rounds=3, allocator="shipped"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:4] == ["| tasks per step | 1 | 1.0 | 1.0 |  |", "| tasks per step | 4 | 4.0 | 4.0 | 4.0 |"]
    assert sum(line.startswith("| ") for line in lines) == 1 + sum(len(sizes) for sizes, _ in growth.GROWTH.values())
    assert (tmp_path / "growth.png").stat().st_size > 0


def test_samplers_draw_the_same_kind_of_tasks():
    """The image of example e of class c is c at every pixel but the first, which is e."""
    images = torch.arange(200, dtype=torch.uint8).view(-1, 1, 1, 1, 1).repeat(1, 20, 1, 2, 2)
    images[..., 0, 0] = torch.arange(20)[:, None]
    for name, draw in sampling.samplers(images, TaskShape(ways=5, shots=2, queries=3)).items():
        support, query = draw()
        assert support.shape == (sampling.TASKS, 10, 1, 2, 2), name
        assert query.shape == (sampling.TASKS, 15, 1, 2, 2), name
        drawn = torch.cat([support.unflatten(1, (5, 2)), query.unflatten(1, (5, 3))], 2).mul(255).round()
        examples, classes = drawn[..., 0, 0, 0], drawn[..., 0, 1, 1]
        assert (classes == classes[:, :, :1]).all(), name
        for rows in (classes[:, :, 0], examples.flatten(0, 1)):
            assert all(len(row.unique()) == len(row) for row in rows), name


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


def test_the_page_has_a_line_for_every_row_of_every_run(outputs):
    lines = results.page(results.find([outputs])).splitlines()
    run = "| 2000 | 7500 of 8000 | 1 h 21 min | 53 | x86_64, 2 threads | 1 | 0123456-dirty |"
    task = "| omniglot (random) | 5-way 1-shot, 1 query per class |"
    assert lines[6:9] == [
        f"| maml/omniglot_5w1s | test {task} 98.12 ± 0.25 % | 98.7 ± 0.4[^maml] | transductive {run}",
        f"| maml/omniglot_5w1s | test_inductive {task} 96.00 ± 0.30 % |  | inductive {run}",
        "| maml/sinusoid | test | sinusoid | 5 points | mse 0.500 ± 0.040 |  | inductive | 600 | 70000 of 70000 | 41 s "
        "| 4000 | x86_64, 2 threads | 0 |  |",
    ]


def test_the_page_shows_sources_inner_steps_and_commands(outputs):
    page = results.page(results.find([outputs]))
    assert "\n[^maml]: Finn, Abbeel, Levine" in page
    assert "[^protonet]" not in page
    assert "| 1 | 0.700 ± 0.050 | 0.67[^maml] |" in page
    assert "- `test`: " in page
    assert "- `queries15`: " not in page
    assert "metarun experiment=maml/omniglot_5w1s seed=1\n" in page
    assert "metarun experiment=maml/sinusoid eval.algo.inner_steps=2\n" in page
    assert "/somewhere" not in page


def test_the_page_does_not_depend_on_folders(outputs):
    page = results.page(results.find([outputs]))
    (outputs / "a").rename(outputs / "c")
    assert results.page(results.find([outputs / "c", outputs / "b", outputs])) == page


def test_only_an_experiments_own_test_stands_beside_a_published_figure():
    result = omniglot_result()
    run = results.Run(result, overrides=None)
    assert run.published("test") == "98.7 ± 0.4[^maml]"
    assert run.published("test_inductive") == ""
    result["choices"]["experiment"] = None
    assert run.published("test") == ""


def test_readmes_table_of_methods_is_what_the_script_writes():
    readme = methods.README.read_text(encoding="utf-8")
    assert readme == methods.rewritten(readme, methods.find([methods.RESULTS])), "run: python scripts/methods.py"
    assert {name for name in known("algo") if f"\n| `{name}` | " not in readme} == set()


def test_a_methods_line_shows_its_class_its_yaml_and_its_results():
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


def test_a_method_that_is_anothers_class_is_described_by_its_own_yaml():
    cells = methods.row("fomaml", "FOMAML: MAML, but quick (Finn et al. 2017, section 5.2)", [])
    assert cells[:3] == ("`fomaml`", "gradient", "MAML, but quick")
    assert cells[5].startswith("[Finn et al. 2017, section 5.2](https")
    with pytest.raises(SystemExit, match=r"configs/algo/fomaml.yaml begin with the comment"):
        methods.row("fomaml", "FOMAML, without a source", [])
