"""A model as a program that runs where there is no metarun."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import metarun
from metarun.config.errors import ConfigError
from metarun.runs.export import Predictor, draw_inputs, export_model
from metarun.runs.model import load
from tests.conftest import TINY, Command

BARE = """
import sys
sys.modules["metarun"] = None  # an import of it fails
import torch
program = torch.export.load(sys.argv[1]).module()
torch.save(program(*torch.load(sys.argv[2])), sys.argv[3])
"""


def run_bare(program: Path, inputs: tuple[torch.Tensor, ...], place: Path) -> torch.Tensor:
    """What a program answers in a process that has no metarun."""
    torch.save(inputs, place / "inputs.pt")
    names = [str(place / name) for name in (program.name, "inputs.pt", "outputs.pt")]
    subprocess.run([sys.executable, "-I", "-c", BARE, *names], check=True, cwd=place, timeout=120)
    outputs: torch.Tensor = torch.load(place / "outputs.pt")
    return outputs


@pytest.mark.integration
@pytest.mark.parametrize("algo", ["protonet", "r2d2"])
def test_the_program_has_the_models_numbers_for_any_shots_and_queries(algo: str, place: Path) -> None:
    small = ("backbone.filters=4", "backbone=conv4") if algo == "protonet" else ("backbone.filters=4",)
    model = load(metarun.run(f"algo={algo}", *TINY, *small, "trainer.workers=1").folder, device="cpu")
    assert len(list(export_model(model, place / "network.pt2"))) == 2
    list(export_model(model, place / "classes.pt2", ways=3))
    support, labels, queries = draw_inputs(model, 3, shots=4, queries=7)
    classifier = model.adapt((support, labels))
    assert isinstance(classifier, metarun.Classifier)
    expected = classifier.predict(queries).logits
    found = run_bare(place / "classes.pt2", (support, labels, queries), place)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    features = run_bare(place / "network.pt2", (queries,), place)
    torch.testing.assert_close(features, model.embed(queries), rtol=0, atol=1e-5 * float(features.abs().max()))


@pytest.mark.integration
def test_a_network_of_texts_reads_hashes(place: Path) -> None:
    (place / "t.csv").write_text("text,label\n" + "\n".join(f"word{i % 10} {i},{i % 10}" for i in range(60)))
    words = ("algo=protonet", "dataset=texts", "dataset.path=t.csv", "backbone.buckets=64", "backbone.features=4")
    brief = ("ways=2", "queries=2", "trainer.steps=1", "trainer.workers=1", "eval.tasks=4", "eval.val_tasks=4")
    model = load(metarun.run(*words, *brief, "device=cpu", "experiment=null").folder, device="cpu")
    list(export_model(model, place / "network.pt2"))
    (inputs,) = draw_inputs(model, None, queries=7)
    features = run_bare(place / "network.pt2", (inputs,), place)
    torch.testing.assert_close(features, model.embed(inputs), rtol=0, atol=1e-5 * float(features.abs().max()))


@pytest.mark.integration
def test_what_cannot_be_exported_is_one_line(metarun: Command, place: Path) -> None:
    assert metarun(*TINY, "trainer.workers=1", "hydra.run.dir=run").code == 0
    for words, told in (
        (("model.bin",), "FILE is model.bin: give a file whose name ends with .pt2 or .onnx"),
        (("model.pt2", "--ways", "1"), "--ways is 1: it must be at least 2"),
        (("model.pt2", "--ways", "9"), "the support has 9 classes: this model's last layer has 5"),
        (("model.pt2", "--ways", "3"), "algo=maml has no program of its own from a support of any size to predictions"),
    ):
        answer = metarun("export", "run", *words)
        assert (answer.code, answer.err.count("\n")) == (2, 1)
        assert told in answer.err
        assert not (place / "model.pt2").exists()


@pytest.mark.skipif(find_spec("onnxscript") is not None, reason="metarun[onnx] is installed")
@pytest.mark.integration
def test_onnx_needs_its_packages(metarun: Command, place: Path) -> None:
    assert metarun(*TINY, "trainer.workers=1", "hydra.run.dir=run").code == 0
    told = r"model.onnx needs a package that is not there: pip install 'metarun\[onnx"
    with pytest.raises(ConfigError, match=told):
        list(export_model(load("run", device="cpu"), place / "model.onnx"))


@pytest.mark.integration
@pytest.mark.parametrize(("algo", "ways"), [("maml", None), ("protonet", 3), ("matchingnet", 4)])
def test_onnx_has_the_same_numbers(metarun: Command, place: Path, algo: str, ways: int | None) -> None:
    """On inputs of another size than those that were traced: the network, and predictions from a support."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install 'metarun[onnx]' onnxruntime")
    onnxruntime = pytest.importorskip("onnxruntime")
    assert metarun(*TINY, f"algo={algo}", "trainer.workers=1", "hydra.run.dir=run").code == 0
    model = load("run", device="cpu")
    list(export_model(model, place / "model.onnx", ways))
    inputs = draw_inputs(model, ways, shots=4, queries=7)
    session = onnxruntime.InferenceSession(place / "model.onnx")
    found = session.run(None, {entry.name: x.numpy() for entry, x in zip(session.get_inputs(), inputs, strict=True)})
    expected = model.embed(inputs[0]) if ways is None else Predictor(model, ways)(*inputs)
    torch.testing.assert_close(torch.from_numpy(found[0]), expected, rtol=0, atol=1e-5)
