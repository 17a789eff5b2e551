"""The scripts: the benchmark compares equals, and the tables of methods show what there is."""

import argparse
import math
import mmap
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import benchmark
import contenders
import coverage
import experiments
import gpu
import gpu_checks
import growth
import methods
import peers
import pytest
import robustness
import sampling
import timed
import torch
import workload
from contenders import disagreement, implementations
from workload import WORK, maml

from metarun.config.registry import known
from metarun.core.types import Algorithm, TaskShape, Theta
from metarun.reports.collect import make_cells, read_runs
from tests.support.fake_cuda import FakeCuda, FakeGraph
from tests.support.tiny_runs import omniglot_result, write_run

SMALL: dict[str, Any] = {"backbone": {"name": "conv4_strided", "filters": 4}, "tasks": 2, "queries": 3}


@pytest.mark.parametrize("item", ["W1q1", "W2so", "W2fo", "W3omni", "W4"])
def test_every_implementation_has_the_plain_loops_meta_gradient(item: str) -> None:
    backbone = {**WORK[item].backbone, "filters": 4}
    work = replace(WORK[item], backbone=backbone, image=(1, 28, 28), ways=5, queries=2, tasks=2)
    for name in implementations(work, "cpu"):
        # torchopt has no first order, and PyTorch no second derivative in the shift of a norm without scale
        if "compiled" not in name and (name, item) not in [("torchopt", "W2fo"), ("torchopt", "W1q1")]:
            assert disagreement(name, work, "cpu") < benchmark.TOLERANCE, name


@pytest.mark.parametrize(
    ("item", "loop", "other"),
    [("W1q1", "plain_maml", maml(0.3, 1)), ("W4", "plain_reptile", {**WORK["W4"].algo, "inner_lr": 1.01e-3})],
)
def test_a_wrong_meta_gradient_is_noticed(
    monkeypatch: pytest.MonkeyPatch, item: str, loop: str, other: dict[str, Any]
) -> None:
    plain = getattr(peers, loop)
    monkeypatch.setattr(peers, loop, lambda net, work: plain(net, replace(work, algo=other)))
    assert disagreement("metarun", replace(WORK[item], **SMALL), "cpu") > 1e-3


def test_metaruns_step_hands_on_what_its_trainer_does(monkeypatch: pytest.MonkeyPatch) -> None:
    starts: list[tuple[Algorithm, Theta]] = []

    def make_algo(*how: Any) -> tuple[Algorithm, Theta]:
        starts.append(workload.make_algo(*how))
        return starts[-1]

    monkeypatch.setattr(contenders, "make_algo", make_algo)
    with contenders.Metarun().ready(replace(WORK["W4"], **SMALL), torch.float64, "cpu") as (step, _):
        step()
        step()
    _, theta = starts[0]
    assert theta["adam"]["steps"].item() == pytest.approx(2 * WORK["W4"].algo["inner_steps"])
    assert all(moment.any() for moment in theta["moments"].values())


@pytest.mark.integration
def test_processes_take_turns_and_workers_share() -> None:
    args = argparse.Namespace(device="cpu", threads=2, allocator="shipped", rounds=2)
    names = [peers.PLAIN, "metarun, 2 workers"]
    times, memory, remarks = benchmark.measure("W4", names, args, SMALL)
    assert {name: len(row) for name, row in times.items()} == dict.fromkeys(names, 2)
    assert memory.keys() == set(names)
    assert len(remarks) == 1
    rows = benchmark.table(times, memory, 2, None, 1.0)
    assert [row.split("|")[1].strip() for row in rows[2:]] == names


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_peak_memory_is_what_a_step_adds() -> None:
    timed.forget_peak("cpu")
    before = timed.peak_mib("cpu")
    with mmap.mmap(-1, 64 * 2**20) as memory:
        memory[:: mmap.PAGESIZE] = b"x" * (len(memory) // mmap.PAGESIZE)
    assert timed.peak_mib("cpu") - before == pytest.approx(64, abs=4)
    timed.forget_peak("cpu")
    assert timed.peak_mib("cpu") - before == pytest.approx(0, abs=4)


def test_those_that_disagree_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"metarun": 1e-3, "metarun, loop": math.nan}
    monkeypatch.setattr(benchmark, "disagreement", lambda name, work, device: found[name])
    times, _, remarks = benchmark.measure("W4", list(found), argparse.Namespace(device="cpu", rounds=1))
    assert not times
    assert [remark.split(": left out")[0] for remark in remarks[1:]] == list(found)


def test_ratios_pair_the_rounds() -> None:
    """Per round the ratios are 2, 4 and 2; the ratio of the medians would be 3. 1 GFLOP in 10 ms is half of 200."""
    times = {"metarun": [10.0, 10.0, 20.0], "plain loop": [20.0, 40.0, 40.0]}
    lines = benchmark.table(times, {"metarun": 5.0, "plain loop": 6.0}, tasks=32, gflop=1.0, peak=200.0)
    assert lines[2] == "| metarun | 10.0 | 2.00 | 3200 | 5 | 50 % |"
    assert lines[3] == "| plain loop | 40.0 | 1.00 | 800 | 6 | 12 % |"


def test_growth_times_every_size_and_leaves_out_who_cannot(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def measured(item: str, names: list[str], args: argparse.Namespace, changes: dict[str, Any]) -> Any:
        return {name: [1.0, changes["tasks"], 1000.0] for name in names}, {}, []

    monkeypatch.setattr(growth, "measure", measured)
    growth.main(argparse.Namespace(folder=tmp_path, device="cpu", rounds=3, allocator="shipped"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:4] == ["| tasks per step | 1 | 1.0 | 1.0 |  |", "| tasks per step | 4 | 4.0 | 4.0 | 4.0 |"]
    assert sum(line.startswith("| ") for line in lines) == 1 + sum(len(sizes) for sizes, _ in growth.GROWTH.values())
    assert (tmp_path / "growth.png").stat().st_size > 0


def test_samplers_draw_the_same_kind_of_tasks() -> None:
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


def test_coverage_counts_the_splits_whose_interval_holds_the_truth() -> None:
    """All pictures of a class are equal: where classes differ every answer is right, elsewhere the first is given."""
    directions = torch.nn.functional.normalize(torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    apart, alike = directions[:, None].expand(-1, 8, -1), torch.ones(12, 8, 4) / 2
    for features, accuracy in ((apart, 1.0), (alike, 0.2)):
        scores, classes = coverage.score(features, torch.tensor([1, 2, 3, 5, 7, 9]), 40, torch.Generator())
        assert scores.tolist() == pytest.approx([accuracy] * 40)
        assert set(classes.flatten().tolist()) == {1, 2, 3, 5, 7, 9}
        for truth, held in ((accuracy, 1.0), (0.5, 0.0)):
            for found in coverage.measure(features, truth, 8, splits=3, tasks=40):
                assert found.held == held
                assert found.half == pytest.approx(0, abs=1e-6)


def test_the_tables_of_methods_are_what_the_script_writes() -> None:
    for path, text in methods.documents().items():
        assert path.read_text(encoding="utf-8") == text, "run: python scripts/methods.py"
    page, readme = (path.read_text(encoding="utf-8") for path in (methods.PAGE, methods.README))
    for name in known("algo"):
        assert f"\n| `{name}` | " in page
        assert f"`{name}`" in readme.partition(methods.START)[2].partition(methods.END)[0]


def test_the_table_of_probes_is_what_the_script_writes() -> None:
    text = robustness.PAGE.read_text(encoding="utf-8")
    assert text == robustness.document(), "run: python scripts/robustness.py"
    table = text.partition(robustness.START)[2].partition(robustness.END)[0]
    for folder in robustness.RUNS.iterdir():
        method = folder.name.partition("-")[0]  # of "protonet-full", the whole training
        assert f"\n| {method}" in table


def test_each_experiment_has_one_place_in_a_page() -> None:
    for name, (page, _) in experiments.EXPERIMENTS.items():
        text = (experiments.ROOT / f"docs/{page}.md").read_text(encoding="utf-8")
        start, end = experiments.START.format(name), experiments.END.format(name)
        assert (text.count(start), text.count(end)) == (1, 1)
        assert text.partition(start)[2].partition(end)[0].strip().startswith("| ")


def test_a_methods_line_shows_its_class_its_yaml_and_its_results(tmp_path: Path) -> None:
    run, another_seed, anils = omniglot_result(), omniglot_result(), omniglot_result()
    another_seed["config"]["seed"] = 2
    anils["choices"]["algo"], anils["config"]["algo"] = "anil", {"name": "anil"}
    for name, result in {"a": anils, "b": run, "c": another_seed}.items():
        write_run(tmp_path / name, result, "[]")
    comment = "MAML: an initialisation (Finn et al. 2017)"
    paper = "[Finn et al. 2017](https://arxiv.org/abs/1703.03400)"
    figure = "omniglot, 5-way 1-shot, 1 query per class: 98.12 ± 0.25 % (published 98.7 ± 0.4)"
    method = methods.describe("maml", comment, list(make_cells(read_runs([tmp_path]))))
    assert (method.algo, method.learns) == ("`maml`", "an initialisation")
    assert (method.norm, method.paper, method.reproduced) == ("batch: transductive", paper, figure)
    assert methods.describe("maml", comment, []).reproduced == "glyphs only"


def test_a_method_that_is_anothers_class_is_described_by_its_own_yaml() -> None:
    method = methods.describe("fomaml", "FOMAML: MAML without second derivatives (Finn et al. 2017, section 5.2)", [])
    assert method[:3] == ("`fomaml`", "gradient", "MAML without second derivatives")
    assert method.paper.startswith("[Finn et al. 2017, section 5.2](https")
    with pytest.raises(SystemExit, match=r"configs/algo/fomaml.yaml must begin with the comments"):
        methods.describe("fomaml", "FOMAML, without a source", [])


GPU = Path(__file__).parents[2] / "scripts/gpu.py"
QUICK = ["trainer.steps=2", "trainer.eval_every=2", "trainer.tasks_per_step=1", "eval.tasks=4", "eval.val_tasks=4"]


def test_every_method_is_checked_on_a_card_and_left_out_are_those_without_a_gradient() -> None:
    names = gpu_checks.list_checks(torch.device("cuda"))
    for what in ("vmap: the gradient", "loop: the gradient", "vmap: the graph of a step", "loop: the graph of a step"):
        checked = {name.split()[0] for name in names if name.endswith(what)}
        assert set(known("algo")) - checked == {"rule"}
    assert not any("graph" in name for name in gpu_checks.list_checks(torch.device("cpu")))


def test_the_checks_of_a_card_see_what_is_right_and_what_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, with torch.cuda replaced."""
    FakeCuda(monkeypatch)
    cpu, problem = torch.device("cpu"), partial(gpu_checks.make, "maml", "mlp")
    assert gpu_checks.replay(cpu) == "exact"
    assert "float32" in gpu_checks.compare_step(problem, "vmap", cpu)
    assert "from eager steps" in gpu_checks.compare_halves(problem, cpu)
    assert gpu_checks.compare_gradient(problem, "loop", cpu) == "0e+00 from the CPU's"
    rates = iter([0.1, 0.1001])

    def unequal(device: torch.device, dtype: torch.dtype) -> gpu_checks.Made:
        algo, theta, tasks = problem(device, dtype)
        return replace(algo, inner_lr=next(rates)), theta, tasks  # type: ignore[type-var]

    with pytest.raises(AssertionError, match=r"the meta-gradient differs by .* of its norm; at most 1e-09 is rounding"):
        gpu_checks.compare_gradient(unequal, "loop", cpu)
    monkeypatch.setattr(FakeGraph, "elsewhere", True)
    with pytest.raises(AssertionError, match="it was not recorded; the log says why"):
        gpu_checks.replay(cpu)


def run_gpu(*words: str, hidden: Path | None = None) -> tuple[int, list[str]]:
    """On a CPU; `hidden`: a folder of packages in front of those that are installed."""
    paths = [str(hidden or ""), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(
        [sys.executable, str(GPU), *words, "--device", "cpu"], capture_output=True, text=True, env=env
    )
    return done.returncode, (done.stdout + done.stderr).splitlines()


@pytest.mark.integration
def test_checks_of_a_card_need_no_hydra_are_kept_and_not_done_again(tmp_path: Path) -> None:
    for package in ("hydra", "omegaconf", "yaml", "scipy", "matplotlib", "pooch", "torchvision"):
        (tmp_path / f"{package}.py").write_text("raise ImportError('it is not installed')")
    words = ("check", "anil on mlp, loop", "--out", str(tmp_path))
    code, lines = run_gpu(*words, hidden=tmp_path)
    assert (code, lines[2]) == (0, "1 passed, 0 failed")
    assert lines[1].startswith("PASS  anil on mlp, loop: the gradient  ")
    code, lines = run_gpu(*words)
    assert (code, lines[1:]) == (0, ["1 passed before", "0 passed, 0 failed"])


def test_what_passed_counts_for_one_card_and_one_state_of_the_code(tmp_path: Path) -> None:
    kept = gpu.Ledger(tmp_path / "check.jsonl", "a card, torch 3")
    kept.add("right", gpu.Outcome(True, 1.0, "equal"))
    kept.add("wrong", gpu.Outcome(False, 1.0, "ValueError: 3"))
    assert kept.passed() == {"right"}
    assert replace(kept, about="a card, torch 4").passed() == set()


@pytest.mark.integration
def test_a_training_and_a_benchmark_on_a_card_pass_or_say_why(place: Path, tmp_path: Path) -> None:
    out = ("--out", str(tmp_path))
    code, lines = run_gpu("train", "algo=protonet", "dataset=glyphs", "backbone.filters=4", *QUICK, *out)
    assert (code, lines[-1]) == (0, "1 passed, 0 failed")
    code, lines = run_gpu("train", "algo=protonets", *out)
    assert (code, lines[-1]) == (1, "0 passed, 1 failed")
    assert any("nearest" in line and "protonet" in line for line in lines)
    code, lines = run_gpu("speed", "W4", *out, "--rounds", "1", "--only", "nothing else")
    assert (code, lines[-1]) == (0, "1 passed, 0 failed")
    assert any(line.startswith(f"| {peers.PLAIN} |") for line in lines)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("import os; os.abort()", "ended by SIGABRT: "),
        ("import time; time.sleep(60)", "stopped after 2 s: "),
        ("import sys; print('the log', flush=True); sys.exit('the error')", "the log\nthe error"),
    ],
)
def test_a_process_that_ends_badly_fails_alone(program: str, said: str) -> None:
    outcome = gpu.run(gpu.Piece("name", [sys.executable, "-S", "-c", program]), limit=2 if "sleep" in program else 60)
    assert (outcome.passed, outcome.said) == (False, said)
