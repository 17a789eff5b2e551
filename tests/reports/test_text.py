"""Reports show the content of the run folders beside the published figures."""

import csv
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from metarun.cli.hydra_app import CONFIGS
from metarun.config.errors import ConfigError
from metarun.config.registry import metric
from metarun.core.statistics import over_classes
from metarun.reports import write_report
from metarun.reports.collect import Cell, Run, make_cells, read_runs
from metarun.reports.published import find_figure, read_figures, read_papers, read_sources
from metarun.reports.records import read_records
from metarun.reports.tables import HEADER, Report
from metarun.reports.text import to_csv, to_latex, to_markdown
from metarun.reports.web import MOST_CHARTS, to_html
from tests.conftest import Command
from tests.support.tiny_runs import drug_result, omniglot_result, sinusoid_result, write_run, write_seeds, write_sweep


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    elsewhere = "- device=cpu\n- data_dir=/somewhere\n"
    write_run(tmp_path / "a", sinusoid_result(), "- experiment=maml/sinusoid\n- ++eval.algo.inner_steps=2\n")
    write_run(tmp_path / "b", omniglot_result(), f"- experiment=maml/omniglot_5w1s\n- seed=1\n{elsewhere}")
    write_run(tmp_path / "b" / "tests" / "again", {"test": {}}, "[]")
    return tmp_path


def read_cells(*folders: Path) -> list[Cell]:
    return list(make_cells(read_runs(folders)))


def page(*folders: Path) -> str:
    return to_markdown(Report(read_runs(folders)))


def test_the_page_has_a_line_for_every_row_of_every_setting(outputs: Path) -> None:
    lines = page(outputs).splitlines()
    run = "| 2000 | 7500 of 8000 | 1 h 21 min | 53 | 1900 MiB | x86_64, 2 threads | 1 | 0123456-dirty |"
    task = "| omniglot (random) | 5-way 1-shot, 1 query per class |"
    paper = "98.7 ± 0.4[^maml] | -0.58 | reproduced † |"
    assert lines[6:9] == [
        f"| maml/omniglot_5w1s | test {task} 98.12 ± 0.25 % |  |  | {paper} transductive {run}",
        f"| maml/omniglot_5w1s | test_inductive {task} 96.00 ± 0.30 % |  |  |  |  |  | inductive {run}",
        "| maml/sinusoid | test | sinusoid | 5 points | mse 0.5000 ± 0.0400 |  |  |  |  |  | inductive | 600 | "
        "70000 of 70000 | 41 s | 4000 |  | x86_64, 2 threads | 0 |  |",
    ]


def test_a_suspect_result_is_marked_and_explained_in_every_format(tmp_path: Path) -> None:
    result = omniglot_result()
    result["warnings"] = ["training: the loss is 7e+28 at its end", "test: accuracy is no better than guessing"]
    write_run(tmp_path, result, "[]")
    report = Report(read_runs([tmp_path]))
    assert [line[HEADER.index("result")] for line in report.overview.rows] == ["98.12 ± 0.25 % ‡", "96.00 ± 0.30 % ‡"]
    told = "- maml/omniglot_5w1s, training: the loss is 7e+28 at its end\n- maml/omniglot_5w1s, test: accuracy is no"
    assert f"\n\n## Warnings\n\n{told} better than guessing\n\n" in to_markdown(report)
    assert r"98.12 $\pm$ 0.25 \% \ddag{}" in to_latex(report.cells)
    page = to_html(report)
    assert '<section id="warnings">' in page
    assert "<li>maml/omniglot_5w1s, test: accuracy is no better than guessing</li>" in page


@pytest.mark.parametrize(
    ("pool", "shown"),
    [
        ({"classes": 20, "ci95_over_classes": 0.0421}, "± 4.21 (20 classes)"),
        ({"assays": 157, "ci95_over_classes": 0.0421}, "± 4.21 (157 assays)"),
        ({"classes": 5, "ci95_over_classes": None}, "unknown (the same 5 classes)"),
        ({"classes": 6, "ci95_over_classes": None}, "unknown (6 classes)"),
        ({"classes": 423, "ci95_over_classes": 0.0021}, "± 0.21 (423 classes)"),
        ({}, ""),
    ],
)
def test_the_number_of_test_classes_stands_beside_the_result(pool: dict[str, Any], shown: str, tmp_path: Path) -> None:
    result = omniglot_result()
    result["test"]["test"] |= pool
    write_run(tmp_path, result, "[]")
    assert Report(read_runs([tmp_path])).overview.rows[0][HEADER.index("over classes")] == shown


def test_sets_of_answers_and_unknown_classes_have_a_table(tmp_path: Path) -> None:
    doubt = {"threshold": 0.2, "coverage": 0.9, "ci95": 0.01, "ci95_over_classes": 0.02, "size": 1.5, "tasks": 600}
    unknown = {"auroc": 0.8, "ci95": 0.0125, "classes": 4, "tasks": 600}
    write_run(tmp_path, omniglot_result() | {"sets": doubt, "unknown": unknown}, "[]")
    (section,) = Report(read_runs([tmp_path])).doubt
    (line,) = section.tables[0].rows
    assert line[1:] == (
        "1", "omniglot", "90.00 ± 1.00 %", "± 2.00", "1.50 of 5", "0.8000 ± 0.0125", "4",
    )  # fmt: skip


def test_over_classes_is_about_the_mean_over_seeds(tmp_path: Path) -> None:
    """Two seeds on the same tasks: their interval is that of the tasks' means, not the widest."""
    rng = np.random.default_rng(0)
    classes = rng.random((40, 6)).argsort(1)[:, :2]
    scores = rng.normal(size=6)[classes].mean(1) + rng.normal(size=(2, 40))
    write_seeds(tmp_path, scores)
    for folder in tmp_path.iterdir():
        result = json.loads((folder / "result.json").read_text())
        result["test"]["test"] |= {"classes": 6, "ci95_over_classes": 9.0}
        (folder / "result.json").write_text(json.dumps(result))
    (cell,) = read_cells(tmp_path)
    assert cell.over_classes == 9.0  # no classes in scores/
    for folder, row in zip(sorted(tmp_path.iterdir()), scores):
        lines = [f"{i},{score},{a},{b}" for i, (score, (a, b)) in enumerate(zip(row, classes))]
        (folder / "scores" / "test.csv").write_text("\n".join(["task,accuracy,class_0,class_1", *lines]) + "\n")
    (cell,) = read_cells(tmp_path)
    assert cell.over_classes == pytest.approx(over_classes(scores.mean(0), classes))


def test_the_test_of_a_single_task_is_a_mean_without_an_interval(tmp_path: Path) -> None:
    result, regression = omniglot_result(), sinusoid_result()
    result["test"]["test"] |= {"tasks": 1, "accuracy": {"mean": 0.8, "ci95": None}}
    steps = {"mean": [3.5, 0.7, 0.5], "ci95": None}
    regression["test"]["test"] |= {"tasks": 1, "mse": {"mean": None, "ci95": None}, "mse_by_step": steps}
    for folder, values in (("a", result), ("b", regression)):
        values["config"]["backbone"] = {"name": "mlp"}
        write_run(tmp_path / folder, values, "[]")
    report = Report(read_runs([tmp_path]))
    assert [line[HEADER.index("result")] for line in report.overview.rows] == ["80.00 %", "96.00 ± 0.30 %", "mse nan"]
    assert "| 1 | 0.7000 | 0.67 |" in to_markdown(report)
    assert to_csv(report.cells).splitlines()[1].split(",")[7:9] == ["80.0000", ""]
    assert report.cells[0].verdict == "too few tasks"
    assert "80.00 %" in to_html(report)
    assert [record["ci95"] for record in read_records(tmp_path)] == [None, 0.003, None]


def test_the_page_shows_sources_inner_steps_deviations_and_commands(outputs: Path) -> None:
    found = page(outputs)
    assert "\n[^maml]: Finn, Abbeel, Levine" in found
    assert "[^closerlook]" not in found
    assert "| 1 | 0.7000 ± 0.0500 | 0.67 |" in found
    assert "- maml/omniglot_5w1s, test: training steps 8000, not 60000; checkpoint best, not last" in found
    assert "- `test`: " in found
    assert "- `queries15`: " not in found
    assert "metarun experiment=maml/omniglot_5w1s seed=1\n" in found
    assert "metarun experiment=maml/sinusoid eval.algo.inner_steps=2\n" in found
    assert "/somewhere" not in found


def test_accuracy_by_instance_stands_beside_the_papers(tmp_path: Path) -> None:
    """In a table by instance, the result of 1-shot tasks is the second entry."""
    result = omniglot_result()
    result["choices"] = {"experiment": "mann/omniglot_5w", "algo": "mann"}
    row = result["test"].pop("test_inductive") | {"queries": 9, "algo": {"name": "mann"}}
    result["test"] = {"test": row | {"accuracy_by_instance": {"mean": [0.35, 0.8123], "ci95": [0.02, 0.01]}}}
    write_run(tmp_path, result, "[]")
    (cell,) = read_cells(tmp_path)
    assert cell.published is not None
    assert cell.published.value == 82.8
    lines = page(tmp_path).splitlines()
    start = lines.index("## mann/omniglot_5w, test, seed 1: accuracy by instance")
    assert lines[start + 2 : start + 6] == [
        "| instance | accuracy | published |",
        "| --- | --- | --- |",
        "| 1 | 35.00 ± 2.00 | 36.4 |",
        "| 2 | 81.23 ± 1.00 | 82.8 |",
    ]
    start = lines.index("## The papers' figures on omniglot, by instance")
    ours = "| mann[^mann] | 5 | 35.00 ± 2.00 % † (36.4) | 81.23 ± 1.00 % † (82.8) | not asked (91.0) |"
    assert any(line.startswith(ours) for line in lines[start:])
    assert any(line.startswith("| lstm[^mann_strings] | 15 | no run (0.0) |") for line in lines[start:])


def test_the_page_does_not_depend_on_folders(outputs: Path) -> None:
    before = page(outputs)
    (outputs / "a").rename(outputs / "c")
    assert page(outputs / "c", outputs / "b", outputs) == before


def test_only_an_experiments_own_test_stands_beside_a_published_figure(tmp_path: Path) -> None:
    result = omniglot_result()
    result["choices"]["experiment"] = None
    write_run(tmp_path, result, "[]")
    assert [cell.published for cell in read_cells(tmp_path)] == [None, None]


@pytest.mark.parametrize(
    ("accuracy", "steps", "verdict"),
    [(0.9812, 8000, "reproduced"), (0.9803, 30000, "below"), (0.9937, 60000, "above"), (0.9932, 60000, "reproduced")],
)
def test_the_verdict_is_by_the_intervals_together(tmp_path: Path, accuracy: float, steps: int, verdict: str) -> None:
    """98.7 +- 0.4 in the paper and +- 0.25 here: reproduced from 98.05 to 99.35."""
    result = omniglot_result()
    result["test"]["test"]["accuracy"]["mean"], result["training"]["steps"] = accuracy, steps
    write_run(tmp_path, result, "[]")
    assert read_cells(tmp_path)[0].verdict == verdict


def test_seeds_become_one_line_and_methods_are_compared(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    hard = rng.normal(0.9, 0.02, size=50)
    write_seeds(tmp_path, np.stack([hard, hard + 0.01, hard + 0.02]))
    write_seeds(tmp_path, hard[None] - 0.05, algo="anil")
    _, maml = read_cells(tmp_path)
    assert (maml.summary.seeds, maml.first.seed, len(maml.runs)) == (3, 0, 3)
    assert maml.summary.mean == pytest.approx(hard.mean() + 0.01)
    assert maml.summary.over_seeds == pytest.approx(4.3027 * 0.01 / 3**0.5, abs=1e-5)  # Student's t, 2 of freedom
    text = page(tmp_path)
    assert f"| {100 * hard.mean() + 1:.2f} ± " in text
    assert "| ± 2.48 |" in text
    assert "| maml/omniglot_5w1s test | anil/omniglot_5w1s test | +6.00 ± 0.00 |" in text
    assert "| maml/omniglot_5w1s test | 1.00 |" in text


@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_score_that_is_not_finite_does_not_spoil_the_ranks_of_others(tmp_path: Path) -> None:
    for algo, score in (("maml", 0.7), ("anil", 0.6), ("boil", float("nan"))):
        write_seeds(tmp_path, np.array([[0.4, 0.5, score]]), algo)
    text = "\n".join(file.read_text() for file in write_report([tmp_path], tmp_path))
    assert "| maml/omniglot_5w1s test | 1.33 |" in text  # (1.5 + 1.5 + 1) / 3
    assert "| anil/omniglot_5w1s test | 1.67 |" in text
    assert "boil/omniglot_5w1s test | " not in text


def test_papers_cells_without_a_run_are_blank_and_say_so(outputs: Path) -> None:
    text = page(outputs)
    row = "no run (99.9 ± 0.1) | no run (95.8 ± 0.3) | no run (98.9 ± 0.2) |"
    assert f"| maml[^maml] | transductive | 98.12 ± 0.25 % † (98.7 ± 0.4) | {row}" in text
    assert "| maml[^maml] |  | no run (0.35) |" in text  # tested with 2 inner steps: that is printed for 1, 5 and 10
    assert "| protonet[^protonet] | inductive | no run (98.8) |" in text
    assert "The papers' figures on miniimagenet" not in text


def test_settings_that_share_a_name_are_told_apart(tmp_path: Path) -> None:
    """By up to three values that differ, else by a number. The best of them at the test is not chosen."""
    for lr in (0.1, 0.2):
        result = omniglot_result()
        result["config"]["optimizer"] = {"name": "adam", "lr": lr}
        write_run(tmp_path / str(lr), result, "[]")
    table = read_cells(tmp_path)
    assert list(dict.fromkeys(cell.name for cell in table)) == [
        f"maml/omniglot_5w1s optimizer.lr={lr}" for lr in (0.1, 0.2)
    ]
    assert "| 2 settings, above (98.7 ± 0.4) |" in page(tmp_path)
    for number, lr in enumerate((0.1, 0.2)):
        result = omniglot_result()
        result["config"]["optimizer"] = {str(key): f"{key} {number}" for key in range(4)}
        (tmp_path / str(lr) / "result.json").write_text(json.dumps(result))
    names = [cell.name for cell in read_cells(tmp_path)]
    assert list(dict.fromkeys(names)) == ["maml/omniglot_5w1s #1", "maml/omniglot_5w1s #2"]


def test_a_run_that_was_repeated_is_no_second_seed(tmp_path: Path) -> None:
    write_run(tmp_path / "a", omniglot_result(), "[]")
    write_run(tmp_path / "b", omniglot_result() | {"commit": "f" * 40}, "[]")
    assert [(cell.summary.seeds, cell.summary.over_seeds) for cell in read_cells(tmp_path)] == [(1, None)] * 2


def test_files_of_the_command(metarun: Command, place: Path, outputs: Path) -> None:
    answer = metarun("report", str(outputs), "--to", "report")
    assert answer.code == 0, answer.err
    assert answer.out.split() == [f"report/report.{kind}" for kind in ("md", "html", "csv", "tex")]
    rows = list(csv.DictReader(Path("report/report.csv").read_text().splitlines()))
    assert [row["experiment"] for row in rows] == ["maml/omniglot_5w1s"] * 2 + ["maml/sinusoid"]
    assert (rows[0]["mean"], rows[0]["published"], rows[0]["verdict"]) == ("98.1250", "98.7", "reproduced")
    tex = Path("report/report.tex").read_text()
    assert r"maml/omniglot\_5w1s & omniglot & 5w1s & transductive & 98.12 $\pm$ 0.25 \% & 98.7 $\pm$ 0.4 \\" in tex
    Path("empty").mkdir()
    answer = metarun("report", "empty")
    assert (answer.code, answer.err) == (2, "metarun: no finished run in empty: there is no result.json\n")


def test_every_published_figure_has_a_source_and_a_known_method() -> None:
    from metarun.cli.compose import describe_options

    known = describe_options("algo").keys()
    for entry in read_figures():
        assert "https://" in read_sources()[entry.source]
        assert entry.algo in known
        assert entry.read in ("primary", "elsewhere", "recalled")
        assert metric(entry.metric)
        assert (entry.by is None) == (entry.entry is None)
    assert len(read_figures()) > 80


def test_published_yaml_has_no_key_that_nothing_reads() -> None:
    """A mistyped key would be passed over: a tolerance, say, or the data of a table."""
    required = {"dataset", "where", "read", "protocol", "figures"}
    for paper in read_papers().values():
        assert paper.keys() == {"citation", "url", "tables"}
        for table in paper["tables"]:
            assert required <= table.keys() <= required | {"metric", "by", "interval", "settings", "tolerance"}
            steps = {"steps", "least_steps"}
            assert table["protocol"].keys() <= {"transductive", "queries", "tasks", *steps, "checkpoint", "validation"}
            assert table["protocol"].get("validation") in (None, "held out", "trained on")
            cells = {cell for row in table["figures"].values() for cell in row}
            assert set(table.get("tolerance", {})) <= {"5w1s", "5w5s"}
            assert "tolerance" not in table or cells & {"5w1s", "5w5s"}


def test_of_several_tables_the_one_of_the_same_mode_and_data_counts(tmp_path: Path) -> None:
    write_run(tmp_path, omniglot_result(), "[]")
    setup = replace(read_cells(tmp_path)[0].setup, ways=20)
    reptile = [find_figure(replace(setup, algo="reptile", transductive=mode)) for mode in (True, False)]
    assert [printed and printed.value for printed in reptile] == [89.43, 88.14]
    assert reptile[0] is not None
    assert "dataset.rotations_test episode, not none" in reptile[0].deviations(setup)
    vinyals = {"split": "random", "rotations_test": "classes", "test_tasks": "episodes"}
    koch = {"split": "lake", "rotations_test": "none", "test_tasks": "runs"}
    for data, value in ((vinyals, 88.0), (koch, 92.0)):
        siamese = find_figure(replace(setup, algo="siamese", transductive=False, config={"dataset": data}))
        assert siamese is not None
        assert siamese.value == value


def test_an_ensemble_is_its_own_checkpoint_and_mode(tmp_path: Path) -> None:
    result = omniglot_result()
    result["test"]["test"]["ensemble"] = 5
    write_run(tmp_path, result, "[]")
    ensemble, alone = read_cells(tmp_path)
    assert (ensemble.setup.checkpoint, alone.setup.checkpoint) == ("ensemble", "best")
    assert (ensemble.mode, alone.mode) == ("transductive, ensemble of 5", "inductive")


@pytest.mark.parametrize(
    ("name", "value", "tolerance", "verdicts"),
    [
        ("accuracy", 98.0, None, {97.01: "reproduced", 96.99: "below", 99.01: "above"}),  # 1 point
        ("accuracy", 98.0, 0.5, {97.51: "reproduced", 97.49: "below", 98.51: "above"}),  # the table's own
        ("mse", 0.40, None, {0.439: "reproduced", 0.361: "reproduced", 0.441: "worse", 0.359: "better"}),  # a tenth
        ("delta_auprc", 0.20, None, {0.191: "reproduced", 0.189: "below", 0.211: "above"}),  # 0.01
    ],
)
def test_a_verdict_is_by_the_metrics_own_tolerance_and_direction(
    name: str, value: float, tolerance: float | None, verdicts: dict[float, str]
) -> None:
    figure = replace(read_figures()[0], metric=name, value=value, plus_minus=None, tolerance=tolerance, steps=1000)
    assert {mean: figure.judge(mean, 0.0001, 600, 500, metric(name)) for mean in verdicts} == verdicts
    short = {mean: "too short" if verdict in ("below", "worse") else verdict for mean, verdict in verdicts.items()}
    assert {mean: figure.judge(mean, 0.0001, 600, 499, metric(name)) for mean in verdicts} == short
    at_least = replace(figure, steps=None, least_steps=1000)
    assert {mean: at_least.judge(mean, 0.0001, 600, 499, metric(name)) for mean in verdicts} == short
    unknown = replace(figure, steps=None)
    assert {mean: unknown.judge(mean, 0.0001, 600, 1, metric(name)) for mean in verdicts} == verdicts


def test_a_vague_result_is_not_reproduced_more_easily() -> None:
    """Tolerance 1 point: our interval counts up to that, the paper's whole, and below 600 tasks there is no verdict."""
    figure = replace(read_figures()[0], value=90.0, plus_minus=0.4, tolerance=None)
    asked = {(88.7, 0.9, 600): "reproduced", (88.61, 8.0, 600): "reproduced", (88.59, 8.0, 600): "below"}
    asked[90.0, 0.9, 599] = "too few tasks"
    assert {entry: figure.judge(*entry, 60000, metric("accuracy")) for entry in asked} == asked


def test_every_setting_of_a_paper_is_one_of_ours_and_what_is_not_known_is_named() -> None:
    snail = next(figure for figure in read_figures() if figure.algo == "snail")
    everything = [
        "queries per class",
        "training steps",
        "checkpoint",
        "validation classes",
        "ways in training",
        "schedule",
    ]
    assert snail.unknown == everything
    maml = next(figure for figure in read_figures() if (figure.algo, figure.cell) == ("maml", "20w1s"))
    assert (maml.unknown, maml.settings["ways"]) == ([], 20)
    others = {"dataset.arms", "algo.memory", "algo.kernel", "dataset.wave", "dataset.noise"}  # of RL^2 and of DKT
    omniglot = yaml.safe_load((CONFIGS / "dataset" / "omniglot.yaml").read_text(encoding="utf-8"))
    known = {"ways", "schedule.name", "backbone.filters", *(f"dataset.{key}" for key in omniglot), *others}
    assert {path for figure in read_figures() for path in figure.settings} <= known


def test_five_ways_on_omniglot_have_half_a_point_and_other_figures_the_metrics_tolerance() -> None:
    for figure in read_figures():
        half = figure.dataset == "omniglot" and figure.cell in ("5w1s", "5w5s")
        assert figure.tolerance == (0.5 if half else None)


def test_a_metric_of_its_own_is_shown_in_its_own_unit(tmp_path: Path) -> None:
    write_run(tmp_path, drug_result(), "[]")
    (cell,) = read_cells(tmp_path)
    assert (cell.score, cell.task) == ("delta_auprc 0.1333 ± 0.0074", "2-way 16-shot, 112 queries per class")
    assert "at most the tolerance (0.01 absolute for delta_auprc)\nor" in page(tmp_path)
    (row,) = csv.DictReader(to_csv([cell]).splitlines())
    assert (row["mean"], row["metric"], row["unit"], row["task"]) == ("0.1333", "delta_auprc", "", "2w16s")


def test_vectors_are_known_by_their_names(tmp_path: Path) -> None:
    """`METRIC_by_step` and `METRIC_by_instance` of any headline metric, and nothing else."""
    result = drug_result()
    vector = {"mean": [0.1, 0.2], "ci95": [0.01, 0.02]}
    result["test"]["test"] |= {"delta_auprc_by_step": vector, "delta_auprc_by_moon": vector, "loss_by_step": vector}
    write_run(tmp_path, result, "[]")
    text = page(tmp_path)
    assert "## protonet/fs_mol, test, seed 0: delta_auprc by inner step\n" in text
    assert "\n| 1 | 0.2000 ± 0.0200 |  |\n" in text
    assert text.count("0.2000 ± 0.0200") == 1


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[1, 2",
        "[1, 2]",
        '{"loss": 0.3}',
        json.dumps(omniglot_result() | {"headline": "charm"}),
        json.dumps(omniglot_result() | {"headline": "mse"}),
        json.dumps(omniglot_result() | {"checkpoint": {"place": 1}}),
        json.dumps(omniglot_result() | {"config": {"seed": 1, "dataset": {"name": "moons"}}}),
        json.dumps({key: value for key, value in omniglot_result().items() if key != "headline"}),
    ],
)
def test_a_damaged_or_foreign_result_is_named_and_skipped(
    outputs: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole = page(outputs)
    (outputs / "c").mkdir()
    (outputs / "c" / "result.json").write_text(content)
    assert page(outputs) == whole
    (record,) = caplog.records
    assert record.getMessage().startswith(f"skipped: {outputs / 'c' / 'result.json'} is damaged")
    assert "\n" not in record.getMessage()
    with pytest.raises(ConfigError, match=r"no finished run in .*c: no result.json can be read"):
        read_runs([outputs / "c"])
    list(write_report([outputs], outputs / "report"))
    for name in ("report.md", "report.html"):
        assert str(outputs / "c" / "result.json") in (outputs / "report" / name).read_text()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("scores/test.csv", ""),
        ("scores/test.csv", "task,accuracy\n0,0.5\n1,half\n"),
        ("scores/test.csv", "task,accuracy\n0\n"),
        ("metrics.csv", "step,split,accuracy\n1,val,good\n"),
        ("metrics.csv", "accuracy\n0.5\n"),
    ],
)
def test_a_run_with_a_damaged_file_is_named_and_skipped(
    outputs: Path, file: str, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    (outputs / "b" / file).parent.mkdir(exist_ok=True)
    (outputs / "b" / file).write_text(content)
    skipped: list[str] = []
    left = read_runs([outputs], skipped)
    assert all(run.folder != outputs / "b" for run in left)
    (line,) = skipped
    assert line.startswith(f"{outputs / 'b' / file} is damaged (")
    assert line.endswith("delete it to go on without it")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("headline",), 3),
        (("device",), None),
        (("test", "test", "tasks"), "many"),
        (("test", "test", "accuracy"), {"mean": "high", "ci95": 0.1}),
        (("training", "seconds"), [1]),
        (("checkpoint", "step"), 1.5),
        (("config",), []),
    ],
)
def test_a_result_with_a_value_of_another_type_is_damaged(tmp_path: Path, path: tuple[str, ...], value: object) -> None:
    result = omniglot_result()
    place = result
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    write_run(tmp_path / "a", result, "[]")
    with pytest.raises(ConfigError, match=r"a/result.json is damaged"):
        Run.read(tmp_path / "a")


def test_a_bar_in_a_name_does_not_end_a_column(tmp_path: Path) -> None:
    result = omniglot_result()
    result["choices"]["experiment"] = "mine|yours"
    write_run(tmp_path, result, "[]")
    line = page(tmp_path).splitlines()[6]
    assert line.startswith(r"| mine\|yours | test |")


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1"])
def test_no_text_of_the_csv_is_a_formula(tmp_path: Path, name: str) -> None:
    result = drug_result()
    result["choices"]["experiment"] = name
    result["test"]["test"]["delta_auprc"]["mean"] = -0.5
    write_run(tmp_path, result, "[]")
    (row,) = csv.DictReader(to_csv(read_cells(tmp_path)).splitlines())
    assert (row["experiment"], row["mean"]) == (f"'{name}", "-0.5000")  # a number stays one


def test_names_are_escaped_in_latex(tmp_path: Path) -> None:
    result = omniglot_result()
    result["choices"]["experiment"] = r"a\b_{c}^2 & 50% #1 $x$ ~<y>|z"
    write_run(tmp_path, result, "[]")
    line = to_latex(read_cells(tmp_path)).splitlines()[4]
    assert line.startswith(
        r"a\textbackslash{}b\_\{c\}\textasciicircum{}2 \& 50\% \#1 \$x\$ "
        r"\textasciitilde{}\textless{}y\textgreater{}\textbar{}z & omniglot & 5w1s & "
    )


@pytest.mark.slow
@pytest.mark.parametrize(("settings", "seeds"), [(20, 5), (100, 1)])
def test_two_thousand_runs_take_less_than_ten_seconds(tmp_path: Path, settings: int, seeds: int) -> None:
    """Processor time for 400 settings with five seeds and for a sweep of 2,000, each with 4,000 scores of tasks."""
    write_sweep(tmp_path / "runs", algos=20, settings=settings, seeds=seeds, tasks=2000)
    before = time.process_time()
    files = list(write_report([tmp_path / "runs"], tmp_path))
    assert time.process_time() - before < 10
    texts = {file.suffix: file.read_text() for file in files}
    assert texts[".csv"].count("\n") == 1 + 2 * 20 * settings
    assert texts[".html"].count("<figure>") == MOST_CHARTS
    assert f"Not drawn: {20 * settings - MOST_CHARTS} more settings." in texts[".html"]


def test_results_with_an_encoder_stand_apart_and_say_which_classes_it_may_have_seen(tmp_path: Path) -> None:
    plain, encoded = omniglot_result(), omniglot_result()
    encoded["config"]["encoder"] = {"name": "efficientnet_lite0"}
    for result in (plain, encoded):
        result["config"]["backbone"] = {"name": "raw"}
    encoded["dataset"] = {"encoder": {"classes_seen": "yes, 20 of 20"}}
    write_run(tmp_path / "plain", plain, "[]")
    write_run(tmp_path / "encoded", encoded, "[]")
    report = Report(read_runs([tmp_path]))
    assert [line[HEADER.index("dataset")] for line in report.overview.rows] == ["omniglot (random)"] * 2
    [[table]] = [section.tables for section in report.encoded]
    assert {(line[2], line[-1]) for line in table.rows} == {
        ("omniglot through efficientnet_lite0 (random)", "yes, 20 of 20")
    }
    assert "## Results with an encoder" in to_markdown(report)
    assert all(cell.published is None for cell in report.cells if cell.first.encoder)
    found = {(record["dataset"], record["encoder"], record["classes_seen"]) for record in read_records(tmp_path)}
    assert found == {("omniglot", None, None), ("omniglot", "efficientnet_lite0", "yes, 20 of 20")}
