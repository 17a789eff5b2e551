"""Measure encoders: heads on their features, in docs/encoders.md.

    METARUN_DATA=data python scripts/encoders.py           # measures what is missing, and writes the table
    METARUN_DATA=data python scripts/encoders.py clinc150  # only the rows of these datasets

The methods are heads with `backbone=raw`, which have nothing to learn, on test tasks alone. Of miniImageNet the first
150 pictures of each test class are read, and features are centred by the support. CPU seconds are of one process: of
computing the features of the whole dataset, if they were not in the cache, and of the tasks.
"""

import csv
import functools
import json
import os
import re
import sys
import tarfile
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from metarun.cli.compose import compose
from metarun.config.load import load_settings, resolve
from metarun.config.registry import metric
from metarun.core.objectives import headline_metric
from metarun.core.statistics import over_classes
from metarun.engine.build import Experiment
from metarun.engine.evaluate import Model

ROOT = Path(__file__).parents[1]
PAGE, KEPT = ROOT / "docs/encoders.md", ROOT / "docs/results/encoders.json"
START, END = "<!-- encoders -->", "<!-- end -->"
TASKS, SLOW_TASKS, PICTURES = 600, 200, 150  # of alpha_tim, which takes 1,000 steps in a task
INDUCTIVE = ("protonet", "simpleshot", "logistic", "tip_adapter", "linear_probe", "quadratic_probe")
TRANSDUCTIVE = ("laplacianshot", "alpha_tim")
ALPHA = 2.0  # of the classes' shares in the queries
PAIRS = [
    *[(dataset, encoder) for dataset in ("clinc150", "banking77") for encoder in ("wordllama", "minilm")],
    ("miniimagenet", "efficientnet_lite0"),
]
ROWS = [
    *[(*pair, head, 5, shots, None) for pair in PAIRS for shots in (1, 5) for head in (*INDUCTIVE, *TRANSDUCTIVE)],
    *[(*pair, head, 5, shots, ALPHA) for pair in PAIRS for shots in (1, 5) for head in TRANSDUCTIVE],
    *[("fs_mol", "morgan", head, 2, shots, None) for shots in (16, 64) for head in INDUCTIVE],
]
HEADER = (
    "dataset",
    "encoder",
    "head",
    "task",
    "result",
    "over classes",
    "classes seen",
    "CPU seconds: features, tasks",
)


def measure(dataset: str, encoder: str, head: str, ways: int, shots: int, dirichlet: float | None) -> dict[str, Any]:
    """Test a head on tasks of the test split."""
    words = [f"encoder={encoder}", f"algo={head}", "device=cpu", "eval.tasks_per_chunk=50", f"shots={shots}"]
    words += [f"eval.tasks={SLOW_TASKS if head == 'alpha_tim' else TASKS}"]
    words += [] if dirichlet is None else [f"eval.dirichlet={dirichlet}"]
    if dataset == "fs_mol":
        words += ["dataset.small_classes=skip"] if shots > 16 else []  # training assays have fewer molecules
    else:
        words += [f"ways={ways}", "queries=5", "eval.queries=5"]
    if dataset == "miniimagenet":
        words += ["dataset=folder", f"dataset.path={extract_pictures()}", "eval.split=all", "algo.norm=batch"]
    else:
        words += [f"dataset={dataset}"]
    settings = load_settings(resolve(compose(words)))
    clock = time.process_time()
    experiment = Experiment.build(settings)
    encoding, clock = time.process_time() - clock, time.process_time()
    theta = experiment.draw_theta()
    tester = experiment.build_tester(experiment.plan_rows()["test"], "test")
    scores = tester.score([Model(theta, experiment.measure_statistics(theta))], settings.eval.tasks, "vmap")
    seconds = time.process_time() - clock
    name = headline_metric(experiment.source.spec)
    found, classes = scores.summarise()[name], tester.draw_classes(settings.eval.tasks)
    values = scores.per_task[name].double().numpy()
    return {
        "dataset": dataset,
        "encoder": encoder,
        "head": head,
        "ways": ways,
        "shots": shots,
        "dirichlet": dirichlet,
        "metric": name,
        **found,
        "over_classes": None if classes is None else over_classes(values, classes.numpy()),
        "seen": "yes, 20 of 20"
        if dataset == "miniimagenet"
        else experiment.dataset.identity()["encoder"]["classes_seen"],
        "encoding": encoding,
        "seconds": seconds,
    }


@functools.cache
def extract_pictures() -> Path:
    """Copy the first pictures of miniImageNet's test classes into a folder for each class."""
    root = Path(os.environ["METARUN_DATA"]) / "mini-imagenet"
    with (root / "test.csv").open(encoding="utf-8", newline="") as table:
        names = {row["filename"]: row["label"] for row in csv.DictReader(table)}
    folder, held = Path(tempfile.gettempdir()) / "miniimagenet_test", Counter[str]()
    with tarfile.open(root / "images-test.tar.xz") as archive:
        for member in archive:
            label = names.get(Path(member.name).name)
            if label and held[label] < PICTURES:
                held[label] += 1
                file = folder / label / Path(member.name).name
                file.parent.mkdir(parents=True, exist_ok=True)
                content = archive.extractfile(member)
                assert content is not None
                file.write_bytes(content.read())
    return folder


def format_row(row: dict[str, Any]) -> tuple[str, ...]:
    shown = metric(row["metric"])
    name = "" if row["metric"] == "accuracy" else f"{row['metric']} "
    spread = row["over_classes"]
    task = f"{row['shots']} molecules" if row["dataset"] == "fs_mol" else f"{row['ways']}w{row['shots']}s"
    task += "" if row.get("dirichlet") is None else ", other shares"
    return (
        row["dataset"],
        row["encoder"],
        row["head"],
        task,
        name + shown.shown(row["mean"], row["ci95"]),
        "" if spread is None else f"± {shown.scale * spread:.{shown.decimals}f}",
        row["seen"],
        f"{row['encoding']:.0f}, {row['seconds']:.0f}",
    )


def write_table(rows: list[dict[str, Any]]) -> None:
    """Write the table between its marks in the page."""
    lines = [HEADER, ("---",) * len(HEADER), *map(format_row, rows)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(re.sub(f"{START}.*{END}", f"{START}\n{table}\n{END}", text, flags=re.S), encoding="utf-8")


def main(datasets: list[str]) -> None:
    kept = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.is_file() else []
    names = ("dataset", "encoder", "head", "ways", "shots", "dirichlet")
    done = {tuple(row.get(name) for name in names): row for row in kept}
    for row in ROWS:
        if row not in done and (not datasets or row[0] in datasets):
            done[row] = measure(*row)
            KEPT.write_text(json.dumps([done[row] for row in ROWS if row in done], indent=1) + "\n", encoding="utf-8")
            print(*format_row(done[row]), flush=True)
    write_table([done[row] for row in ROWS if row in done])


if __name__ == "__main__":
    main(sys.argv[1:])
