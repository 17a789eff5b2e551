"""The examples run as they are."""

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_every_example_has_a_test() -> None:
    assert {path.name for path in EXAMPLES.iterdir() if path.is_file()} == {
        "own_loop.py",
        "first_steps.ipynb",
        "predict.ipynb",
    }


@pytest.mark.integration
def test_a_loop_of_ones_own_is_short_and_trains(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = EXAMPLES / "own_loop.py"
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 45
    monkeypatch.setattr(sys, "argv", [str(file), "21"])
    runpy.run_path(str(file), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    first, last = (float(line.split("loss ")[1].split(",")[0]) for line in lines[:2])
    assert [line.split(":")[0] for line in lines[:2]] == ["step 0", "step 20"]
    assert last < first
    assert 25 < float(lines[2].removeprefix("test accuracy ").removesuffix(" %")) <= 100  # chance is 20


@pytest.mark.integration
def test_the_notebook_runs_from_top_to_bottom(place: Path) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(EXAMPLES / "first_steps.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs for cell in code)  # the checkout has the notebook without outputs
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(place)}}).execute()
    printed = {i: "".join(o.get("text", "") for o in cell.outputs) for i, cell in enumerate(code)}
    right, _, total = printed[4].split(" ")[:3]
    assert (int(right) > 20, total) == (True, "40")  # chance is 8
    assert all(any("image/png" in o.get("data", {}) for o in code[i].outputs) for i in (1, 5, 6))
    assert "'algo': 'protonet'" in printed[7]


@pytest.mark.integration
def test_the_notebook_about_predictions_prints_what_it_shows(place: Path) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(EXAMPLES / "predict.ipynb", as_version=4)
    shown = [read_outputs(cell) for cell in notebook.cells if cell.cell_type == "code"]
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(place)}}).execute()
    printed = [read_outputs(cell) for cell in notebook.cells if cell.cell_type == "code"]
    assert printed[1] == shown[1]  # files
    assert [line.split(" [")[0] for line in printed[2].splitlines()] == [
        line.split(" [")[0] for line in shown[2].splitlines()
    ]
    assert printed[3:] == shown[3:]  # the same answers for files and for opened pictures; how many are right; a shape


def read_outputs(cell: Any) -> str:
    return "".join(output.get("text") or output["data"]["text/plain"] for output in cell.outputs)
