"""Tasks of different sizes: padding changes no number, and a run of them is a run like any other."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from metarun.config.registry import declaration, known, lookup
from metarun.config.traits import Kind
from metarun.core.batch import unstack
from metarun.core.types import PADDING, Episode, Examples, TaskSource, TaskSpec
from metarun.datasets.glyphs import Glyphs
from tests.conftest import TINY, Command
from tests.support.tiny import BACKBONES, algo_and_theta, episodes, learns, leaves

RAGGED = [name for name in known("algo") if declaration("algo", name).traits.ragged]
CASES = [(name, kind) for name in RAGGED for kind in ("classification", "regression") if learns(name, kind)]
EXTRA = 2


def filled_up(part: Examples, kind: Kind) -> Examples:
    """With examples that do not count, of inputs like the others'."""
    nothing = torch.full((EXTRA,), PADDING) if kind == "classification" else torch.full((EXTRA, 1), torch.nan)
    return Examples(torch.cat([part.x, part.x[:EXTRA].flip(0) + 0.1]), torch.cat([part.y, nothing.to(part.y.dtype)]))


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_padding_of_support_and_queries_changes_no_number(
    name: str, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BACKBONES, "mlp", {"hidden": [6, 5], "batch_norm": False})
    algo, theta = algo_and_theta(name, "mlp", kind)
    (task,) = unstack(episodes(1, kind, backbone="mlp"))
    found = []
    for episode in (task, Episode(filled_up(task.support, kind), filled_up(task.query, kind))):
        loss, _ = algo.task_loss(theta, episode)
        gradient = torch.autograd.grad(loss, leaves(theta), allow_unused=True)
        found.append((loss, gradient, algo.task_metrics(theta, episode)))
    torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("metric", ["accuracy", "delta_auprc", "mse"])
def test_metrics_are_of_what_is_there(metric: str) -> None:
    generator = torch.Generator().manual_seed(0)
    prediction = torch.randn(9, 2, generator=generator, dtype=torch.float64)
    y = torch.tensor([0, 1, 1, 0, 1, 0] + [PADDING] * 3)
    if metric == "mse":
        y = torch.where(y == PADDING, torch.nan, y.double())[:, None].expand(-1, 2)
    of = lookup("metric", metric)
    torch.testing.assert_close(of(prediction, y), of(prediction[:6], y[:6]), rtol=1e-12, atol=0)


@dataclass(frozen=True)
class FewerShots:
    """Another source's tasks, each with 1 to K of its K shots."""

    source: TaskSource

    @property
    def spec(self) -> TaskSpec:
        return self.source.spec._replace(ragged=True)

    def sample(self, num_tasks: int, generator: torch.Generator) -> Episode:
        (x, y), query = self.source.sample(num_tasks, generator)
        shots = y.shape[1] // self.spec.output_size
        kept = torch.randint(1, shots + 1, (num_tasks, 1), generator=generator)
        return Episode(Examples(x, torch.where(torch.arange(y.shape[1]) % shots < kept, y, PADDING)), query)


@pytest.fixture
def ragged(metarun: Command, monkeypatch: pytest.MonkeyPatch) -> Command:
    """metarun on such tasks."""
    whole = Glyphs.tasks
    monkeypatch.setattr(Glyphs, "tasks", lambda *arguments: FewerShots(whole(*arguments)))
    return lambda *words: metarun(*TINY, "shots=3", *words)


@pytest.mark.integration
@pytest.mark.parametrize("algo", ["maml", "protonet"])
def test_they_pass_through_trainer_test_result_and_plots(ragged: Command, place: Path, algo: str) -> None:
    answer = ragged(f"algo={algo}", "hydra.run.dir=run")
    assert answer.code == 0, answer.err
    result = json.loads((place / "run/result.json").read_text())
    assert 0.2 < result["test"]["test"]["accuracy"]["mean"] <= 1
    with (place / "run/scores/test.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 20
    assert (place / "run/curves.png").is_file()


def test_a_method_that_would_count_padding_says_which_do_not(ragged: Command, place: Path) -> None:
    answer = ragged("algo=r2d2", "hydra.run.dir=run")
    assert answer.code == 2
    assert answer.err == (
        "metarun: algo=r2d2 takes tasks of one size, and this dataset's differ: choose from " + ", ".join(RAGGED) + "\n"
    )
    assert not (place / "run").exists()
