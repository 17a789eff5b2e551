"""What `metarun predict` and `metarun embed` write: tables, pictures and a page."""

import csv
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binom

import metarun
from metarun.datasets.preprocessing import Named
from metarun.reports import gallery, predictions
from metarun.reports.statistics import wilson_interval
from metarun.runs.prediction import Prediction
from tests.conftest import TINY, Command
from tests.reports.test_web import Seen, in_a_browser
from tests.support.browser import open_browser
from tests.test_face import SHORT, write_pictures

LABELS = ["ant", "bee", "bee", None, "wasp", "bee"]  # wasps are in no support
PREDICTION = Prediction(
    classes=["ant", "bee", "fly"],
    logits=torch.tensor([[4.0, 0, 0], [0, 3, 1], [5, 0, 0], [0, 1, 0], [0, 0, 2], [0, 0, 9]]),
    names=[f"{i}.png" for i in range(6)],
)


def read(file: Path) -> list[list[str]]:
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.reader(lines))


def test_queries_with_the_label_of_a_class_are_judged() -> None:
    found = predictions.judge(PREDICTION, LABELS)
    assert found is not None
    assert found.confusion.tolist() == [[1, 0, 0], [1, 1, 1], [0, 0, 0]]
    assert found.mistakes == [2, 5]
    assert found.summary.startswith(
        "50.0 % (15.0 to 85.0 %)"
    )  # Wilson for 2 of 4, by hand: (2 + z²/2 ± ...) / (4 + z²)
    table = {row[0]: row[1:] for row in found.by_class.rows}
    assert (table["bee"][0], table["bee"][1][:6], table["bee"][2][:7], table["bee"][3]) == (
        "3",
        "33.3 %",
        "100.0 %",
        "ant (1)",
    )
    assert table["fly"] == ("0", "", "0.0 % (0.0 to 79.3 %)", "")
    assert predictions.judge(PREDICTION, [None, "wasp", *[None] * 4]) is None


def test_queries_of_other_classes_are_told_by_the_largest_score() -> None:
    """The largest logits of two of other classes are 4 and 5, of three of the classes 3, 2 and 9: 2 pairs of 6."""
    told = predictions.describe_unknown(PREDICTION, ["wasp", "bee", "wasp", None, "bee", "bee"])
    assert told is not None
    assert told.startswith("AUROC 0.3333 of the largest score, by which 3 queries of the classes are told from 2 ")
    assert predictions.describe_unknown(PREDICTION, [None, "wasp", *[None] * 4]) is None
    assert predictions.describe_unknown(PREDICTION, ["ant"] * 6) is None


@pytest.mark.parametrize("whole", [12, 60])
def test_wilsons_interval_covers(whole: int) -> None:
    """Over all probabilities, the mean chance that the interval of what is seen holds the probability is 95 %."""
    chances = np.linspace(0.02, 0.98, 97)
    intervals = [wilson_interval(part, whole) for part in range(whole + 1)]
    covered = [
        sum(binom.pmf(part, whole, p) for part, (low, high) in enumerate(intervals) if low <= p <= high)
        for p in chances
    ]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.01)


def test_the_table_has_every_probability_or_the_likeliest(tmp_path: Path) -> None:
    file, order = tmp_path / "predictions.csv", predictions.sort_by_doubt(PREDICTION)
    predictions.write_table(file, PREDICTION, LABELS, range(6), top=None)
    header, *rows = read(file)
    assert header == ["file", "class", "label", "p_ant", "p_bee", "p_fly"]
    assert [row[:3] for row in rows[2:4]] == [["2.png", "ant", "bee"], ["3.png", "bee", ""]]
    for row, logits in zip(rows, PREDICTION.logits.double().exp()):
        assert [float(p) for p in row[3:]] == pytest.approx((logits / logits.sum()).tolist(), abs=6e-5)
    predictions.write_table(file, PREDICTION, [None] * 6, order, top=2)
    header, *rows = read(file)
    assert header == ["file", "class", "class_1", "p_1", "class_2", "p_2"]
    assert rows[0][:3] == ["3.png", "bee", "bee"]  # exp(1) of exp(1) + 2
    doubts = [float(row[3]) for row in rows]
    assert doubts == sorted(doubts)


def test_no_name_in_the_table_is_a_formula_or_steers_a_terminal(tmp_path: Path) -> None:
    names = ["=HYPERLINK(1)", "-1.5", "-0.5 2", "\x1b[2J\u202e", os.fsdecode(b"\xff"), "+a"]
    predictions.write_csv(tmp_path / "x.csv", [names])
    assert read(tmp_path / "x.csv") == [["'=HYPERLINK(1)", "-1.5", "-0.5 2", r"\x1b[2J\u202e", r"\udcff", "'+a"]]


def test_principal_components_keep_the_distances_of_points_in_a_plane() -> None:
    rng = np.random.default_rng(0)
    plane, axes = rng.normal(size=(8, 2)), np.linalg.qr(rng.normal(size=(5, 2)))[0]
    points, about = gallery.flatten(3 + plane @ axes.T)
    distances, expected = (np.linalg.norm(x[:, None] - x, axis=-1) for x in (points, plane))
    np.testing.assert_allclose(distances, expected, atol=1e-12)
    assert about == "The first two principal components, 100 % of the variance"
    assert gallery.flatten(np.ones((2, 1)))[0].shape == (2, 2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Path:
    """A run, and beside it a support of 3 classes and queries with labels, of random strokes."""
    folder = tmp_path_factory.mktemp("predict")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METARUN_CACHE", str(shared_cache))
        metarun.run(*TINY, *SHORT, "algo=fomaml", f"hydra.run.dir={folder}/run")
    x = (torch.rand(18, 1, 28, 28, generator=torch.Generator().manual_seed(0)) > 0.8).float()
    write_pictures(folder / "support", x[:6], [f"{name}/{i}.png" for name in ("ant", "bee", "<i>fly") for i in (1, 2)])
    names = [f"{name}/{i}.png" for name in ("ant", "bee", "<i>fly") for i in range(4)]
    write_pictures(folder / "query", x[6:], names)
    return folder


def test_the_command_writes_predictions_and_how_often_they_are_right(
    metarun: Command, trained: Path, place: Path
) -> None:
    words = ["predict", f"{trained}/run", f"{trained}/support", f"{trained}/query", "--device=cpu"]
    answer = metarun(*words, "--html=page.html")
    assert answer.code == 0, answer.err
    first, second, held, third, last = answer.out.splitlines()
    assert first == "12 queries, 3 classes from 6 examples, by maml after 1 step"
    assert second == "the last layer of maml has 2 classes more: their logits are left out"
    header, *rows = read(place / "predictions.csv")
    assert header == ["file", "class", "label", "set", "p_<i>fly", "p_ant", "p_bee"]
    sets = [row[3].split(" | ") for row in rows]
    assert all(row[1] == names[0] for row, names in zip(rows, sets))
    share, size = sum(row[2] in names for row, names in zip(rows, sets)) / 12, sum(map(len, sets)) / 12
    told = f"have {size:.2f} of 3 classes, and hold the label in {100 * share:.1f} % ("
    assert held.startswith(f"sets of answers, meant to hold the class in 90 %, {told}")
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)
    assert all(row[0] == f"{row[2]}/{i % 4}.png" for i, row in enumerate(rows))
    right = sum(row[1] == row[2] for row in rows)
    assert third.startswith(f"accuracy {100 * right / 12:.1f} % (")
    written = ["predictions.csv", "predictions_confusion.png", "predictions_mistakes.png", "page.html"]
    assert last == f"wrote {', '.join(written)}"
    for name in written[1:3]:
        with Image.open(place / name) as picture:
            assert min(picture.size) > 100
    seen = Seen((place / "page.html").read_text(encoding="utf-8"))
    assert "i" not in seen.tags
    assert len(seen.all("src")) == 18
    assert all(re.match("data:image/(png|jpeg);base64,", address) for address in seen.all("src"))
    assert all(row[0] in seen.text for row in rows)


def test_a_task_of_a_dataset_shows_what_a_model_does(metarun: Command, trained: Path, place: Path) -> None:
    answer = metarun("predict", f"{trained}/run", "glyphs:test", "glyphs:test", "--top=1", "--device=cpu")
    assert answer.code == 0, answer.err
    assert ", 5 classes from 5 examples, by maml after 1 step\n" in answer.out
    header, *rows = read(place / "predictions.csv")
    assert header == ["file", "class", "label", "set", "class_1", "p_1"]
    assert len({row[2] for row in rows}) == 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["glyphs:test", "query"], "SUPPORT is glyphs:test and QUERY query: give the same DATASET:SPLIT for both"),
        (
            ["lost", "query"],
            "1 class folder of the support without a picture, for example wren: put some in, or remove it",
        ),
        (["support", "nothing"], "there is no file or folder nothing"),
        (["support", ""], "the inputs are an empty path, as of an unset variable of the shell: name a file or folder"),
        (["support", "query", "--top=0"], "--top is 0: it must be at least 1"),
        (["support", "table.csv", "--to=./table.csv"], "--to is table.csv: that is what is to be read"),
        (["support", "query", "--to=a.txt"], "--to is a.txt: give a file whose name ends with .csv"),
        (["support", "query", "--html=no/a.html"], "--html is no/a.html: there is no folder no"),
    ],
)
def test_mistakes_are_one_line(metarun: Command, trained: Path, words: list[str], message: str) -> None:
    known = {name: str(trained / name) for name in ("support", "query", "lost")}
    shutil.copytree(trained / "support", trained / "lost", dirs_exist_ok=True)
    (trained / "lost/wren").mkdir(exist_ok=True)
    words = [known.get(word, word) if "glyphs" not in words[0] else word for word in words]
    answer = metarun("predict", f"{trained}/run", *words, "--device=cpu")
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith(f"metarun: {message}")
    assert len(answer.err.splitlines()) == 1


def test_features_are_written_as_arrays_or_a_table(metarun: Command, trained: Path, place: Path) -> None:
    run, files = str(trained / "run"), str(trained / "support")
    expected = load(trained).embed(trained / "support").numpy()
    assert metarun("embed", run, files, "--device=cpu", "--html=map.html").code == 0
    with np.load(place / "embeddings.npz") as arrays:
        np.testing.assert_array_equal(arrays["embeddings"], expected)
        assert arrays["files"][0] == "<i>fly/1.png"
        assert arrays["labels"].tolist() == ["<i>fly"] * 2 + ["ant"] * 2 + ["bee"] * 2
    assert len(Seen((place / "map.html").read_text(encoding="utf-8")).all("src")) == 6
    assert metarun("embed", run, files, "--to=table.csv", "--device=cpu").code == 0
    header, *rows = read(place / "table.csv")
    assert header[:3] == ["file", "label", "e0"]
    np.testing.assert_allclose(np.array([row[2:] for row in rows], dtype=float), expected, rtol=1e-6)


def load(trained: Path) -> metarun.Model:
    return metarun.load(trained / "run", device="cpu")


def test_a_regression_has_values_and_their_error(tmp_path: Path) -> None:
    """Twice the input is predicted: errors 0, 4 and 16, whose mean is 20 / 3 and standard deviation sqrt(208 / 3)."""
    query = Named(["1", "2", "3", "4"], np.array([[1.0], [2.0], [3.0], [4.0]]), [[2.0], [2.0], [10.0], None])
    regressor = metarun.Regressor(lambda named: query, lambda x: 2 * torch.as_tensor(x))
    request = predictions.Request(tmp_path / "values.csv", None, False, None)
    told = list(predictions.write_values(regressor, query, request))
    half = 1.96 * (208 / 3) ** 0.5 / 3**0.5
    assert told[0] == f"mean squared error 6.667 ± {half:.2g}, of 3 queries with a y"
    assert read(tmp_path / "values.csv") == [
        ["x", "prediction_1", "y"],
        ["1", "2", "2"],
        ["2", "4", "2"],
        ["3", "6", "10"],
        ["4", "8", ""],
    ]
    with pytest.raises(metarun.ConfigError, match="--html, --top and --uncertain-first are for classes"):
        list(predictions.write_values(regressor, query, replace(request, top=3)))


@in_a_browser
def test_the_page_fits_phones_and_laptops_in_both_colour_schemes(trained: Path, tmp_path: Path) -> None:
    model, page = load(trained), tmp_path / "page.html"
    request = predictions.Request(tmp_path / "p.csv", None, False, page)
    list(predictions.predict_queries(model, model.read(trained / "support"), model.read(trained / "query"), request))
    with open_browser(tmp_path / "profile") as tab:
        for width in (390, 1280):
            for scheme in ("light", "dark"):
                tab.open(page, width, scheme)
                assert tab.evaluate("document.documentElement.scrollWidth") <= width
                assert tab.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
        assert (tab.console, tab.refused) == ([], [])
        assert {address[:5] for address in tab.requested} == {"file:", "data:"}
