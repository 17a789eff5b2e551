"""Hydra's launchers and sweepers, each as the documentation has it, where it is installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import TINY

pytestmark = pytest.mark.integration

LAUNCHED = {
    "hydra_plugins.hydra_joblib_launcher": ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=1,2"),
    "hydra_plugins.hydra_submitit_launcher": ("hydra/launcher=submitit_local", "seed=1,2"),
    "hydra_plugins.hydra_ray_launcher": ("hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=2", "seed=1,2"),
    "hydra_plugins.hydra_optuna_sweeper": (
        "hydra/sweeper=optuna",
        "hydra.sweeper.n_trials=2",
        "hydra.sweeper.n_jobs=1",
        "hydra.sweeper.direction=maximize",
        "optimizer.lr=interval(0.001,0.01)",
    ),
}


def swept(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = "import sys; sys.argv[0] = 'metarun'; from metarun.cli.main import main; main()"
    command = [sys.executable, "-c", program, "--multirun", *arguments, *TINY]
    return subprocess.run(
        command, cwd=place, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )


@pytest.mark.parametrize("plugin", LAUNCHED)
def test_two_jobs_through(plugin: str, place: Path) -> None:
    pytest.importorskip(plugin)
    done = swept(place, *LAUNCHED[plugin])
    assert done.returncode == 0, done.stderr
    assert "2 jobs: 2 done" in done.stdout.splitlines()  # Ray's own lines may come after
    assert len(list(place.glob("outputs/*/*/result.json"))) == 2


@pytest.mark.parametrize("plugin", list(LAUNCHED)[:2])
def test_a_failure_in_another_process_is_told_here(plugin: str, place: Path) -> None:
    pytest.importorskip(plugin)
    done = swept(place, *LAUNCHED[plugin], "optimizer.lr=1e30", "optimizer=sgd", "trainer.log_every=1")
    assert done.returncode == 1
    assert "2 jobs: 2 failed" in done.stderr
    assert "failed: seed=1: training diverged: " in done.stderr


def test_a_run_that_diverges_does_not_end_a_study(place: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    study = LAUNCHED["hydra_plugins.hydra_optuna_sweeper"]
    done = swept(place, *study[:-1], "optimizer=sgd", "optimizer.lr=interval(1e29,1e30)", "trainer.log_every=1")
    assert done.returncode == 1
    assert "2 jobs: 2 failed" in done.stderr
    assert (place / "outputs" / "optimization_results.yaml").is_file()
