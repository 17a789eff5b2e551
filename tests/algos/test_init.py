"""Initial meta-parameters depend on the run's seed, in all that is random about them, and on nothing else."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from metarun.cli.compose import compose
from metarun.config.load import load_settings, resolve
from metarun.core.inner import draw_theta
from metarun.core.types import Theta
from metarun.engine.build import Experiment
from tests.conftest import TINY, Command
from tests.support.tiny import FEW_SHOT, ONE_BACKBONE, build_algo

BACKBONE = dict(reversed(ONE_BACKBONE))  # the quickest of each algorithm


def is_constant(p: torch.Tensor) -> bool:
    """Whether all numbers are equal, as where everything starts at 0, at 1 or at a setting."""
    return bool((p == p.flatten()[0]).all())


def assert_equal(one: Theta, other: Theta) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("name", FEW_SHOT)
def test_theta_depends_on_the_seed_in_all_of_its_random_parts(name: str) -> None:
    algo = build_algo(name, BACKBONE[name])
    one, two = draw_theta(algo, 1), draw_theta(algo, 2)
    equal = {f"{c}.{n}" for c, params in one.items() for n, p in params.items() if torch.equal(p, two[c][n])}
    constant = {f"{c}.{n}" for c, params in one.items() for n, p in params.items() if is_constant(p)}
    assert equal <= constant
    assert len(constant) < sum(len(params) for params in one.values())


@pytest.mark.parametrize("name", FEW_SHOT)
def test_theta_depends_on_nothing_but_the_seed(name: str) -> None:
    algo = build_algo(name, BACKBONE[name])
    expected = draw_theta(algo, 2)
    draw_theta(algo, 1)
    assert_equal(draw_theta(algo, 2), expected)  # after another draw
    torch.manual_seed(99)
    torch.rand(7)
    assert_equal(draw_theta(build_algo(name, BACKBONE[name]), 2), expected)  # of templates with other weights


@pytest.mark.parametrize("name", FEW_SHOT)
def test_drawing_theta_leaves_the_global_generator_as_it_was(name: str) -> None:
    algo = build_algo(name, BACKBONE[name])
    before = torch.get_rng_state()
    draw_theta(algo, 3)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_experiment_leaves_the_global_generator_as_it_was() -> None:
    settings = load_settings(resolve(compose(["algo=metanet", *TINY])))
    before = torch.get_rng_state()
    Experiment.build(settings).draw_theta()
    assert torch.equal(torch.get_rng_state(), before)


def fingerprints(names: list[str]) -> dict[str, str]:
    """Hashes of each algorithm's theta of seed 2, drawn one after another in the order of `names`."""
    found = {}
    for name in names:
        theta = draw_theta(build_algo(name, BACKBONE[name]), 2)
        numbers = b"".join(p.numpy().tobytes() for params in theta.values() for p in params.values())
        found[name] = hashlib.sha256(numbers).hexdigest()
    return found


@pytest.mark.integration
def test_a_new_process_draws_the_same() -> None:
    code = "import json; from tests.algos.test_init import *; print(json.dumps(fingerprints(FEW_SHOT[::-1])))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == fingerprints(FEW_SHOT)


def first_loss(folder: Path) -> float:
    line: dict[str, float] = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    return line["loss"]


@pytest.mark.integration
def test_metanet_trains_the_same_model_alone_in_a_sweep_and_with_workers(metarun_process: Command, place: Path) -> None:
    words = ("algo=metanet", *TINY, "trainer.steps=1", "trainer.eval_every=1")
    for folder, workers in (("alone", 1), ("workers", 2)):
        done = metarun_process(*words, "seed=2", f"trainer.workers={workers}", f"hydra.run.dir={folder}")
        assert done.code == 0, done.err
    done = metarun_process(*words, "--multirun", "seed=1,2", "trainer.workers=1")
    assert done.code == 0, done.err
    other, same = sorted(folder.parent for folder in place.glob("outputs/*/*/result.json"))
    assert first_loss(same) == first_loss(place / "alone")
    assert first_loss(place / "workers") == pytest.approx(first_loss(place / "alone"), rel=1e-6)
    assert first_loss(other) != pytest.approx(first_loss(same), rel=1e-3)
