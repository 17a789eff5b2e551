"""A network that somebody else trained, from a local file: as a backbone, and as an encoder with and without a run."""

from pathlib import Path

import pytest
import torch
import torchvision

from tests.conftest import Command
from tests.reports.test_predictions import read
from tests.test_face import write_pictures

MODEL = "shufflenet_v2_x0_5"
SHORT = (
    *("algo=protonet", "dataset=folder", "dataset.path=pictures", "dataset.image_size=32", "ways=2", "shots=1"),
    *("queries=2", "trainer.steps=1", "trainer.tasks_per_step=1", "trainer.workers=1", "trainer.execution=loop"),
    *("trainer.eval_every=1", "trainer.log_every=1", "eval.tasks=2", "eval.val_tasks=2", "eval.statistics_tasks=1"),
    *("device=cpu", "experiment=null"),
)


@pytest.fixture
def weights(place: Path) -> Path:
    """Random weights; beside their file ten classes of three pictures in folders, and a support and queries."""
    torch.manual_seed(0)
    torch.save(torchvision.models.get_model(MODEL).state_dict(), place / "w.pth")
    x = torch.rand(42, 1, 28, 28)
    write_pictures(place / "pictures", x[:30], [f"{c}/{i}.png" for c in "abcdefghij" for i in range(3)])
    write_pictures(place / "support", x[30:36], [f"{c}/{i}.png" for c in "xy" for i in range(3)])
    write_pictures(place / "query", x[36:], [f"{c}/{i}.png" for c in "xy" for i in range(3)])
    return place / "w.pth"


@pytest.mark.integration
def test_a_backbone_starts_from_a_file_which_a_trained_model_does_not_need(weights: Path, metarun: Command) -> None:
    own = (f"backbone.model={MODEL}", "backbone.weights=w.pth", "optimizer.lr=1e-12", "hydra.run.dir=run")
    assert (answer := metarun(*SHORT, "backbone=torchvision", *own)).code == 0, answer.err
    assert (answer := metarun("evaluate", "run", "tasks=3")).code == 0, answer.err
    theta = torch.load("run/checkpoints/last.pt", weights_only=True)["tensors"]["theta"]
    kept = torch.load(weights, weights_only=True)
    weights.unlink()
    found = {name.removeprefix("network."): w for part in ("backbone", "norm") for name, w in theta[part].items()}
    assert found.keys() == {n for n in kept if not n.startswith("fc.") and n.rpartition(".")[2] in ("weight", "bias")}
    for name, value in found.items():
        torch.testing.assert_close(value, kept[name], rtol=0, atol=1e-9)
    assert (answer := metarun("predict", "run", "support", "query", "--device=cpu")).code == 0, answer.err
    assert len(read(Path("predictions.csv"))) == 7
    answer = metarun("evaluate", "run", "tasks=2")
    assert (answer.code, answer.err) == (
        2, f"metarun: backbone.weights: there is no file {weights} with weights\n"
    )  # fmt: skip


@pytest.mark.integration
def test_an_encoder_has_the_same_answers_with_a_run_and_without(weights: Path, metarun: Command) -> None:
    own = ("encoder.path=w.pth", f"encoder.model={MODEL}", "encoder.image_size=32")
    words = [text for text in SHORT if "image_size" not in text]
    assert (answer := metarun(*words, "encoder=torchvision", *own, "hydra.run.dir=run")).code == 0, answer.err
    assert (answer := metarun("predict", "run", "support", "query", "--device=cpu")).code == 0, answer.err
    by_run = [row[:2] for row in read(Path("predictions.csv"))]
    answer = metarun("predict", "--encoder", "torchvision", *own, "support", "query", "--device=cpu")
    assert answer.code == 0, answer.err
    assert [row[:2] for row in read(Path("predictions.csv"))] == by_run


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--encoder=torchvision"], "encoder.path is None: it must be a file with weights of resnet18"),
        (["--encoder=torchvision", "encoder.path=no.pth"], "encoder.path is {place}/no.pth: it must be a file with"),
        (["--encoder=torchvision", "encoder.file=w.pth"], "encoder.file: no such setting"),
        (["run", "encoder.path=w.pth"], "encoder.path=w.pth is for --encoder NAME, which is not given"),
    ],
)
def test_what_is_wrong_with_an_encoders_settings_is_told(
    words: list[str], message: str, metarun: Command, place: Path
) -> None:
    answer = metarun("predict", *words, "support", "query")
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith(f"metarun: {message.format(place=place)}")
