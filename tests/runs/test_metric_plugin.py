"""A metric of another package is one entry: shown everywhere by what it declares."""

import csv
import json
import os
import pty
import subprocess
import sys
import termios
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

MODULE = '''
"""Rankings: a dataset whose tasks are judged by nDCG."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metarun.config.registry import register
from metarun.config.traits import DatasetTraits, Metric
from metarun.core.types import Episode, Examples, Split, TaskShape, TaskSpec
from metarun.datasets.preprocessing import Numbers


@register(
    "metric", "gain", Metric(higher_is_better=True, worst=0.0, tolerance=2.0, unit="nDCG%", scale=100.0, decimals=1)
)
def gain(prediction: Tensor, y: Tensor) -> Tensor:
    """Discounted gain of class 1 in the order of its logit, as a share of the ideal order's."""
    ranking = (prediction[:, 1] - prediction[:, 0]).argsort(descending=True)
    discount = (torch.arange(len(y), device=y.device) + 2.0).log2().reciprocal().to(prediction.dtype)
    relevant = y.to(prediction.dtype)
    return (relevant[ranking] @ discount) / (relevant.sort(descending=True).values @ discount)


@dataclass(frozen=True)
class Source:
    """Points on one side of a random plane through the origin are relevant."""

    shape: TaskShape
    device: torch.device

    @property
    def spec(self) -> TaskSpec:
        return TaskSpec("classification", (3,), 2, metric="gain")

    def sample(self, num_tasks: int, generator: torch.Generator) -> Episode:
        normal = torch.randn(num_tasks, 3, 1, generator=generator)

        def part(per_class: int) -> Examples:
            x = torch.randn(num_tasks, 2 * per_class, 3, generator=generator)
            side = torch.arange(2).repeat_interleave(per_class)
            along = (x @ normal).squeeze(-1)
            flip = (along > 0) != (side == 1)
            return Examples(torch.where(flip[..., None], -x, x), side.expand(num_tasks, -1))

        return Episode(part(self.shape.shots), part(self.shape.queries))


@register("dataset", "rankings", DatasetTraits(kind="classification", metric="gain"))
@dataclass(frozen=True)
class Rankings:
    """Points to rank."""

    device: torch.device

    def prepare(self) -> None:
        """Nothing to do."""

    def tasks(self, split: Split, shape: TaskShape) -> Source:
        return Source(shape, self.device)

    def describe(self) -> str:
        return "rankings"

    def notes(self) -> list[str]:
        return []

    def preprocessing(self) -> dict[str, Any]:
        return Numbers().to_json()

    def identity(self) -> dict[str, Any]:
        return {"name": "rankings"}
'''
RUN = (
    "algo=maml",
    "dataset=rankings",
    "backbone=mlp",
    "backbone.hidden=[8]",
    "shots=3",
    "trainer.steps=100",
    "trainer.log_every=10",
    "trainer.eval_every=20",
    "eval.tasks=20",
    "eval.val_tasks=10",
    "device=cpu",
    "trainer.workers=1",
    "hydra.run.dir=runs/run",
)


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package: a module, its YAML, and the metadata that pip would write."""
    folder = tmp_path / "site"
    (folder / "rankings" / "configs" / "dataset").mkdir(parents=True)
    (folder / "rankings" / "__init__.py").write_text(MODULE)
    (folder / "rankings" / "configs" / "dataset" / "rankings.yaml").write_text("# Points to rank\nname: rankings\n")
    info = folder / "rankings-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rankings\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[metarun]\nrankings = rankings\n")
    paths = [str(folder), str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    return folder


def read_terminal(descriptor: int) -> str:
    """Everything that was written to the terminal's other side."""
    chunks = []
    while True:
        try:
            chunk = os.read(descriptor, 4096)
        except OSError:  # Linux's way to say that the other side is closed
            break
        if not chunk:
            break
        chunks.append(chunk)
    return b"".join(chunks).decode(errors="replace")


def test_a_metric_of_a_plugin_is_seen_everywhere(plugin: Path, place: Path) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, 200))
    run = subprocess.Popen([sys.executable, "-m", "metarun", *RUN], stderr=theirs, stdout=subprocess.PIPE, text=True)
    os.close(theirs)
    bar = read_terminal(ours)
    output, _ = run.communicate(timeout=240)
    assert run.returncode == 0, bar
    result = json.loads((place / "runs/run/result.json").read_text(encoding="utf-8"))
    assert result["headline"] == "gain"
    row = result["test"]["test"]["gain"]
    with (place / "runs/run/scores/test.csv").open(encoding="utf-8") as file:
        scores = [float(line["gain"]) for line in csv.DictReader(file)]
    assert row["mean"] == pytest.approx(sum(scores) / len(scores))
    assert all(0 < score <= 1 for score in scores)
    shown = f"gain {100 * row['mean']:.1f} ± {100 * row['ci95']:.1f} nDCG%"
    assert shown in output
    assert "val gain=" in bar
    assert "nDCG%" in bar
    with (place / "runs/run/metrics.csv").open(encoding="utf-8") as file:
        assert any(line["gain"] for line in csv.DictReader(file) if line["split"] == "val")
    assert (place / "runs/run/curves.png").read_bytes().startswith(b"\x89PNG")

    report = [sys.executable, "-m", "metarun", "report", "runs", "--to", "page"]
    done = subprocess.run(report, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for name in ("report.md", "report.html"):
        text = (place / "page" / name).read_text(encoding="utf-8")
        assert f"{100 * row['mean']:.1f} ± {100 * row['ci95']:.1f}" in text
        assert "nDCG%" in text
