"""Write the page of results from the runs themselves: every figure is read from a `result.json`, none is typed.

python scripts/results.py outputs > RESULTS.md
"""

import argparse
import json
import shlex
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

SOURCES = {
    "[^maml]": "Finn, Abbeel, Levine, *Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks*, ICML 2017, "
    "tables 1 and 2, <https://arxiv.org/abs/1703.03400>",
    "[^protonet]": "Snell, Swersky, Zemel, *Prototypical Networks for Few-shot Learning*, NeurIPS 2017, table 1, "
    "<https://arxiv.org/abs/1703.05175>",
    "[^reptile]": "Nichol, Achiam, Schulman, *On First-Order Meta-Learning Algorithms*, 2018, table 2, "
    "<https://arxiv.org/abs/1803.02999>; as quoted elsewhere, not checked against the paper itself",
}
PUBLISHED = {  # algo, dataset, ways, shots -> accuracy in percent
    ("maml", "omniglot", 5, 1): "98.7 ± 0.4[^maml]",
    ("fomaml", "omniglot", 5, 1): "98.3 ± 0.5[^reptile]",
    ("protonet", "omniglot", 5, 1): "98.8[^protonet]",
    ("protonet", "omniglot", 20, 1): "96.0[^protonet]",
    ("protonet", "omniglot", 5, 5): "99.7[^protonet]",
    ("protonet", "omniglot", 20, 5): "98.9[^protonet]",
}
PUBLISHED_SINUSOID = {1: "0.67[^maml]", 5: "0.38[^maml]", 10: "0.35[^maml]"}  # MAML, 5 points: inner steps -> mse
ROWS = {
    "test": "the run's own test; for an experiment, as the method's paper does it",
    "20way": "the same model on tasks of 20 classes",
    "queries15": "the same model with 15 queries per class, all predicted in one batch",
    "_inductive": "the row of that name, with each query predicted without sight of the others",
}
HEADER = (
    "experiment", "row", "dataset", "task", "result", "published", "mode", "test tasks", "checkpoint",
    "training", "tasks/s", "device", "seed", "commit",
)  # fmt: skip
READING = """\
Each row is one run, tested once, with the checkpoint that scored best on validation tasks unless its command
sets `eval.checkpoint`; *checkpoint* gives its step. An experiment's file tells which settings
were tried before it. A result is the mean over the test tasks, ± 1.96 standard
deviations / sqrt(tasks): the interval covers the draw of the tasks, not that of the seed. Runs with the same dataset
and task are tested on the same test tasks, whatever their method and seed. *Transductive* results normalise by the
statistics of a batch that holds all queries of a task, *inductive* ones do not. Published figures stand beside the
rows tested by their protocol; trainings are often shorter than the papers', as the experiment's file says. Raghu et al.
print no Omniglot figure for ANIL at 5 ways. *Training* and *tasks/s* are of the
meta-training on *device*."""


@dataclass(frozen=True)
class Run:
    """A finished run: its `result.json`, and the overrides it was started with, where Hydra kept them."""

    result: dict[str, Any]
    overrides: list[str] | None

    @classmethod
    def read(cls, file: Path) -> "Run":
        overrides = file.parent / ".hydra" / "overrides.yaml"
        return cls(
            json.loads(file.read_text(encoding="utf-8")),
            yaml.safe_load(overrides.read_text(encoding="utf-8")) if overrides.is_file() else None,
        )

    @property
    def algo(self) -> str:
        return str(self.result["choices"]["algo"])

    @property
    def dataset(self) -> str:
        return str(self.result["config"]["dataset"]["name"])

    @property
    def experiment(self) -> str | None:
        return self.result["choices"].get("experiment")

    @property
    def name(self) -> str:
        return self.experiment or self.algo

    @property
    def order(self) -> tuple[Any, ...]:
        """By content alone, so that the page does not depend on folders."""
        config = self.result["config"]
        return self.name, self.dataset, config["ways"], config["shots"], config["seed"], json.dumps(self.result)

    @property
    def command(self) -> str | None:
        """As typed, without what only says where things are."""
        if self.overrides is None:
            return None
        typed = [text.lstrip("+") for text in self.overrides]
        elsewhere = ("device=", "data_dir=", "dataset.path=", "hydra")
        return shlex.join(["metarun", *(text for text in typed if not text.startswith(elsewhere))])

    def published(self, name: str, inner_steps: int | None = None) -> str:
        """The figure printed for a row's protocol, with its source; only an experiment follows a paper's."""
        row = self.result["test"][name]
        if self.experiment is None or name not in ("test", "20way"):
            return ""
        if (self.algo, self.dataset, row["shots"]) == ("maml", "sinusoid", 5):
            steps = row["algo"]["inner_steps"] if inner_steps is None else inner_steps
            return PUBLISHED_SINUSOID.get(steps, "")
        return PUBLISHED.get((self.algo, self.dataset, row["ways"], row["shots"]), "")


def find(folders: list[Path]) -> list[Run]:
    """Every finished run below `folders`; what `metarun evaluate` adds under a run's `tests/` is left out."""
    files = {
        file.resolve(): None
        for folder in folders
        for file in sorted(folder.rglob("result.json"))
        if "tests" not in file.relative_to(folder).parts
    }
    runs = [Run.read(file) for file in files]
    return sorted(runs, key=lambda run: run.order)


def page(runs: list[Run]) -> str:
    sections = [
        "# Results",
        "Written by `scripts/results.py` from the runs' own files.",
        table(HEADER, (line for run in runs for line in lines(run))),
        *by_step(runs),
        f"## What the rows are\n\n{meanings(runs)}",
        f"## How to read\n\n{READING}",
        f"## Commands\n\n{commands(runs)}",
    ]
    body = "\n\n".join(sections)
    notes = "\n".join(f"{mark}: {citation}" for mark, citation in SOURCES.items() if mark in body)
    return f"{body}\n\n{notes}".rstrip() + "\n"


def lines(run: Run) -> Iterator[tuple[str, ...]]:
    """A line of the main table for each row of the run's test."""
    config, training = run.result["config"], run.result["training"]
    split = config["dataset"].get("split")
    for name, row in run.result["test"].items():
        yield (
            run.name,
            name,
            f"{run.dataset} ({split})" if split else run.dataset,
            task(row),
            score(row),
            run.published(name),
            "transductive" if row["transductive"] else "inductive",
            str(row["tasks"]),
            f"{run.result['checkpoint']['step']} of {training['steps']}",
            duration(training["seconds"]),
            f"{training['tasks_per_second']:.0f}",
            run.result["device"],
            str(config["seed"]),
            short(run.result["commit"]),
        )


def task(row: dict[str, Any]) -> str:
    if "accuracy" not in row:
        return f"{row['shots']} points"
    queries = "1 query" if row["queries"] == 1 else f"{row['queries']} queries"
    return f"{row['ways']}-way {row['shots']}-shot, {queries} per class"


def score(row: dict[str, Any]) -> str:
    if "accuracy" in row:
        return f"{100 * row['accuracy']['mean']:.2f} ± {100 * row['accuracy']['ci95']:.2f} %"
    metric = "mse" if "mse" in row else "delta_auprc"
    return f"{metric} {row[metric]['mean']:.3f} ± {row[metric]['ci95']:.3f}"


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def short(commit: str | None) -> str:
    if commit is None:
        return ""
    digest, *dirty = commit.split("-", 1)
    return "-".join([digest[:7], *dirty])


def by_step(runs: list[Run]) -> list[str]:
    """MSE after each inner step, for the regressions."""
    sections = []
    for run in runs:
        row = run.result["test"]["test"]
        if "mse_by_step" in row:
            means, intervals = row["mse_by_step"]["mean"], row["mse_by_step"]["ci95"]
            content = [
                (str(step), f"{mean:.3f} ± {ci95:.3f}", run.published("test", step))
                for step, (mean, ci95) in enumerate(zip(means, intervals))
            ]
            heading = f"## {run.name}, seed {run.result['config']['seed']}: mse by inner step"
            sections.append(f"{heading}\n\n{table(('inner steps', 'mse', 'published'), content)}")
    return sections


def meanings(runs: list[Run]) -> str:
    seen = [name for run in runs for name in run.result["test"]]
    known = {row: text for row, text in ROWS.items() if any(name == row or name.endswith(row) for name in seen)}
    return "\n".join(f"- `{row}`: {text}" for row, text in known.items())


def commands(runs: list[Run]) -> str:
    typed = "\n".join(dict.fromkeys(run.command for run in runs if run.command))
    return f"```bash\n{typed}\n```"


def table(header: tuple[str, ...], content: Iterable[tuple[str, ...]]) -> str:
    rows = [header, ("---",) * len(header), *content]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, help="where the runs are, as outputs")
    parser.add_argument("--write", type=Path, help="a file for the page, in place of the standard output")
    args = parser.parse_args()
    runs = find(args.folders)
    if not runs:
        print("there is no finished run here: no result.json", file=sys.stderr)
        return 1
    if args.write:
        args.write.write_text(page(runs), encoding="utf-8")
    else:
        print(page(runs), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
