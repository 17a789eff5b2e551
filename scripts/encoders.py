"""Measure encoders: nearest class means of their features, in docs/encoders.md.

    METARUN_DATA=data python scripts/encoders.py           # measures what is missing, and writes the table
    METARUN_DATA=data python scripts/encoders.py clinc150  # only the rows of these datasets

The method is `algo=protonet backbone=raw`, which has nothing to learn, on test tasks alone. CPU seconds are of one
process: of computing the features of the whole dataset, if they were not in the cache, and of 2,000 tasks.
"""

import json
import re
import sys
import time
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
TEXTS = [("clinc150", encoder, 5, shots) for encoder in ("wordllama", "minilm") for shots in (1, 5)]
ROWS = [
    *TEXTS,
    *[("banking77", *row[1:]) for row in TEXTS],
    *[("miniimagenet", "efficientnet_lite0", 5, shots) for shots in (1, 5)],
    *[("fs_mol", "morgan", 2, shots) for shots in (16, 64)],
]
HEADER = ("dataset", "encoder", "task", "result", "over classes", "classes seen", "CPU seconds: features, tasks")


def measure(dataset: str, encoder: str, ways: int, shots: int) -> dict[str, Any]:
    """Test the nearest class mean on 2,000 tasks of the test split."""
    words = [f"dataset={dataset}", f"encoder={encoder}", "algo=protonet", "device=cpu", f"shots={shots}"]
    words += [] if dataset == "fs_mol" else [f"ways={ways}", "queries=5", "eval.queries=5"]
    words += ["dataset.image_size=84"] if dataset == "miniimagenet" else []
    settings = load_settings(resolve(compose(words)))
    clock = time.process_time()
    experiment = Experiment.build(settings)
    encoding, clock = time.process_time() - clock, time.process_time()
    tester = experiment.build_tester(experiment.plan_rows()["test"], "test")
    scores = tester.score([Model(experiment.draw_theta(), {})], settings.eval.tasks, "vmap")
    seconds = time.process_time() - clock
    name = headline_metric(experiment.source.spec)
    found, classes = scores.summarise()[name], tester.draw_classes(settings.eval.tasks)
    values = scores.per_task[name].double().numpy()
    return {
        "dataset": dataset,
        "encoder": encoder,
        "ways": ways,
        "shots": shots,
        "metric": name,
        **found,
        "over_classes": None if classes is None else over_classes(values, classes.numpy()),
        "seen": experiment.dataset.identity()["encoder"]["classes_seen"],
        "encoding": encoding,
        "seconds": seconds,
    }


def format_row(row: dict[str, Any]) -> tuple[str, ...]:
    shown = metric(row["metric"])
    name = "" if row["metric"] == "accuracy" else f"{row['metric']} "
    spread = row["over_classes"]
    task = f"{row['shots']} molecules" if row["dataset"] == "fs_mol" else f"{row['ways']}w{row['shots']}s"
    return (
        row["dataset"],
        row["encoder"],
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
    done = {(row["dataset"], row["encoder"], row["ways"], row["shots"]): row for row in kept}
    for row in ROWS:
        if row not in done and (not datasets or row[0] in datasets):
            done[row] = measure(*row)
            KEPT.write_text(json.dumps([done[row] for row in ROWS if row in done], indent=1) + "\n", encoding="utf-8")
            print(*format_row(done[row]), flush=True)
    write_table([done[row] for row in ROWS if row in done])


if __name__ == "__main__":
    main(sys.argv[1:])
