"""Several processes train one model: the same numbers to rounding, whoever started them."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metarun.config.errors import ConfigError
from metarun.core.batch import Execution
from metarun.engine.distributed import ALONE, Ranks, count_workers, join_ranks, start_ranks
from metarun.engine.gradient import meta_gradient
from tests.conftest import TINY, Command
from tests.support.tiny import ONE_BACKBONE, algo_and_theta, episodes, leaves

EXECUTIONS: tuple[Execution, ...] = ("vmap", "loop")
CASES = [(name, backbone, execution) for name, backbone in ONE_BACKBONE for execution in EXECUTIONS]
TASKS = 5  # which two ranks cannot share evenly


def gradients(ranks: Ranks) -> list[Any]:
    torch.set_num_threads(1)
    found = []
    for name, backbone, execution in CASES:
        algo, theta = algo_and_theta(name, backbone)
        loss, metrics, gradient = meta_gradient(algo, theta, episodes(TASKS), execution=execution, ranks=ranks)
        found.append([loss, metrics, leaves(gradient)])
    return found


def second(rank: int, count: int, port: int, threads: int) -> None:
    with join_ranks(rank, count, port, threads) as ranks:
        gradients(ranks)
        ranks.gather(3)
        ranks.broadcast(None)
        ranks.any(True)


@pytest.mark.integration
def test_two_ranks_have_the_meta_gradient_of_one() -> None:
    with start_ranks(2, torch.device("cpu"), second, ()) as ranks:
        shared = gradients(ranks)
        assert ranks.gather(2) == [2, 3]
        assert ranks.broadcast("mine") == "mine"
        assert ranks.any(False)
    for case, ours, alone in zip(CASES, shared, gradients(ALONE), strict=True):
        torch.testing.assert_close(ours, alone, rtol=1e-10, atol=1e-13, msg=str(case))


@given(total=st.integers(0, 10_000), count=st.integers(1, 64))
def test_shares_cover_everything_once_and_differ_by_one_at_most(total: int, count: int) -> None:
    shares = [Ranks(rank, count).share(total) for rank in range(count)]
    assert shares[0][0] == 0
    assert shares[-1][1] == total
    assert all(stop == start for (_, stop), (start, _) in pairwise(shares))
    sizes = [stop - start for start, stop in shares]
    assert max(sizes) - min(sizes) <= 1


def test_auto_gives_each_worker_two_tasks_and_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    cpu = torch.device("cpu")
    assert [count_workers("auto", tasks, cpu) for tasks in (1, 2, 3, 4, 8, 64)] == [1, 1, 1, 2, 4, 4]
    assert count_workers("auto", 64, torch.device("cuda")) == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert count_workers("auto", 64, cpu) == 1
    with pytest.raises(ConfigError, match="started processes already"):
        count_workers(2, 64, cpu)
    with pytest.raises(ConfigError, match="device is mps: PyTorch has nothing that sums over processes there"):
        count_workers("auto", 64, torch.device("mps"))


def results(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return lines, json.loads((folder / "result.json").read_text())


def assert_alike(one: Path, other: Path) -> None:
    (ours, our_result), (theirs, their_result) = results(one), results(other)
    assert [line.keys() for line in ours] == [line.keys() for line in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4) if "loss" in a else a["step"] == b["step"]
    assert our_result["test"]["test"]["task_hash"] == their_result["test"]["test"]["task_hash"]


@pytest.mark.integration
def test_workers_and_torchrun_train_as_one_process_does(metarun_process: Command, place: Path) -> None:
    tiny = [*TINY, "trainer.tasks_per_step=4", "eval.tasks=120", "algo=protonet"]
    for workers in (1, 2):
        answer = metarun_process(*tiny, f"trainer.workers={workers}", f"hydra.run.dir=workers{workers}")
        assert answer.code == 0, answer.err
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "metarun"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([*launch, *tiny, "hydra.run.dir=torchrun"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if "accuracy" in line]
    assert len(said) == len(set(said)) > 3  # one process alone has spoken
    for folder in ("workers2", "torchrun"):
        assert results(place / folder)[1]["training"]["workers"] == 2
        assert_alike(place / folder, place / "workers1")


@pytest.mark.integration
def test_a_lost_worker_ends_the_run_with_one_line_and_the_run_goes_on_later(place: Path) -> None:
    arguments = [*TINY, "trainer.steps=100000", "trainer.tasks_per_step=4", "trainer.workers=2", "hydra.run.dir=run"]
    code = "from metarun.cli.main import main; main()"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    run = subprocess.Popen([sys.executable, "-c", code, *arguments], env=environment, stderr=subprocess.PIPE, text=True)
    while not (place / "run" / "checkpoints" / "last.pt").exists():
        assert run.poll() is None, run.communicate()
        time.sleep(0.05)
    children = subprocess.run(["pgrep", "-P", str(run.pid), "-f", "spawn_main"], capture_output=True, text=True)
    os.kill(int(children.stdout.split()[0]), signal.SIGKILL)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 1
    reason = "another of this run's processes ended before its time; the same command goes on from the last checkpoint"
    assert f"metarun: {place / 'run'}: {reason}\n" in errors
    assert "Traceback" not in errors
