"""Measure the single experiments of docs/robustness.md and docs/reports.md, and write their tables there.

    METARUN_DATA=data python scripts/experiments.py runs                # all tables
    METARUN_DATA=data python scripts/experiments.py runs attacked shift # these

A run that is missing below the folder is trained first, those of whole trainings on Omniglot for hours.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import metarun
from metarun.cli.compose import change
from metarun.config.load import load_settings, read_option
from metarun.config.registry import build, metric
from metarun.core.statistics import Estimate
from metarun.engine.build import Experiment
from metarun.engine.distributed import ALONE
from metarun.probes.attack import Attack
from metarun.probes.probe import Figures, Subject, compare, estimate
from metarun.probes.shift import OWN, complete
from metarun.reports.text import format_table
from metarun.runs.folder import RunFolder
from metarun.runs.scoring import load_models

ROOT = Path(__file__).parents[1]
START, END = "<!-- experiment {} -->", "<!-- end of {} -->"
Row = tuple[str, ...]

SHORT = "dataset=omniglot ways=5 shots=5 queries=5 backbone=conv4_strided backbone.filters=32 trainer.steps=500"
SHORT += " trainer.tasks_per_step=4 trainer.eval_every=250 eval.val_tasks=50 eval.tasks=100"
GLYPHS = "dataset=glyphs shots=5 backbone=conv4_strided backbone.filters=16 trainer.steps=200 trainer.tasks_per_step=4"
RADIUS, STEP = 0.1, 0.025  # of attacks on glyphs
ATTACKED = f"trainer.attack_radius={RADIUS} trainer.attack_step={STEP}"
SINES = "experiment=ml3/sinusoid trainer.steps=1000 trainer.eval_every=500 eval.val_tasks=100 eval.tasks=500"
USUAL = "algo.form=scaled optimizer.lr=1e-12 trainer.steps=1"  # the usual loss at the same rate
SEEDS = range(3)
LAYERS = {"nothing": "nothing frozen", "no inner loop": "NIL"}
TRAINED = {
    "protonet-short": f"algo=protonet {SHORT}",
    "maml-short": f"algo=maml {SHORT}",
    "protonet-glyphs": f"algo=protonet {GLYPHS}",
    "protonet-attacked": f"algo=protonet {GLYPHS} {ATTACKED}",
    "r2d2-glyphs": f"algo=r2d2 {GLYPHS}",
    "r2d2-attacked": f"algo=r2d2 {GLYPHS} {ATTACKED}",
    "protonet-omniglot": "experiment=protonet/omniglot shots=1",
    "matchingnet-omniglot": "experiment=matchingnet/omniglot_5w5s",
    "maml-omniglot": "experiment=maml/omniglot_5w1s",
    **{f"sines-learned-{seed}": f"{SINES} seed={seed}" for seed in SEEDS},
    **{f"sines-usual-{seed}": f"{SINES} {USUAL} seed={seed}" for seed in SEEDS},
    "ml3-glyphs": "algo=ml3 trainer.steps=100 trainer.tasks_per_step=4 eval.tasks=300",
    "ml3-usual": f"algo=ml3 {USUAL} eval.tasks=300",
    "metal-glyphs": "experiment=metal/glyphs_5w1s eval.tasks=300",
}


class Place(NamedTuple):
    """Where runs are."""

    folder: Path

    def open(self, run: str, tasks: int, *changes: str) -> Subject:
        """A run with changes to its test, trained if it is missing, to be looked at on so many tasks."""
        folder = RunFolder(self.folder / run)
        if not folder.best.is_file():
            metarun.run(*TRAINED[run].split(), f"hydra.run.dir={folder.path}")
        settings = load_settings(change(folder.config(), [f"eval.probe_tasks={tasks}", *changes]))
        experiment = Experiment.build(settings)
        models, _ = load_models(experiment, folder, ALONE)
        return Subject(experiment, models[0], "vmap")

    def score(self, run: str, tasks: int, *changes: str, **data: Any) -> Tensor:
        """The figure of each task of a run's test; on other data, whose pictures are read as the run's."""
        subject = self.open(run, tasks, *changes)
        form = subject.pictures.to_json() if subject.pictures else {}
        row = replace(subject.row, dataset=complete(data, form))
        return subject.score(subject.build_tester(row)).per_task[subject.headline]

    def probe(self, run: str, probe: str, tasks: int, *changes: str, **settings: Any) -> Sequence[Figures]:
        """The table of a probe."""
        built = build("probe", {**read_option("probe", probe), **settings}, probe)
        table: Sequence[Figures] = built.run(self.open(run, tasks, *changes)).table
        return table


def show(found: Estimate, name: str = "accuracy") -> str:
    assert isinstance(found.mean, float)
    assert not isinstance(found.ci95, list)
    return metric(name).shown(found.mean, found.ci95)


def compare_norms(place: Place) -> Iterator[Row]:
    """Corrupted queries of ProtoNet, whose norm layers have averages of training, or statistics of the batch."""
    strengths = {"contrast": [0.6, 0.3], "brightness": [0.1, 0.3], "rotation": [20.0, 45.0]}
    names = {"contrast": "contrast, {:g} of it is left", "brightness": "brightness, {:g} more"}
    found = [
        place.probe("protonet-short", "corruption", 30, f"eval.algo.norm={norm}", small=strengths)
        for norm in ("running", "batch")
    ]
    yield "queries", "averages of training", "statistics of the batch"
    for first, second in zip(*found):
        strength = strengths[first["corruption"]][first["severity"] - 1]
        what = names.get(first["corruption"], "rotation by {:g} degrees").format(strength)
        yield what, show(first["accuracy"]), show(second["accuracy"])


def freeze_layers(place: Place) -> Iterator[Row]:
    """MAML with layers frozen in the inner loop of the test."""
    loops = {"1 step of 0.4, as in training": (1, 0.4), "1 step of 4": (1, 4.0), "30 steps of 4": (30, 4.0)}
    for number, (name, (steps, rate)) in enumerate(loops.items()):
        changes = (f"eval.algo.inner_steps={steps}", f"eval.algo.inner_lr={rate}")
        table = [row for row in place.probe("maml-short", "reuse", 50, *changes) if row["accuracy"] != ""]
        if number == 0:
            yield (
                "inner loop at the test",
                *(LAYERS.get(row["layer"], f"up to {row['layer'].removeprefix('backbone.')}") for row in table),
            )
        yield name, *(show(row["accuracy"]) for row in table)


def attack_queries(place: Place) -> Iterator[Row]:
    """Training on attacked queries: accuracy without and with attacks, and the paired difference."""
    attack = Attack(RADIUS, STEP, 20, "cross-entropy")
    yield "method", "trained on", "clean", "FGSM", "PGD-20"
    for algo in ("protonet", "r2d2"):
        found = []
        for name in ("glyphs", "attacked"):
            subject = place.open(f"{algo}-{name}", 200)
            form = subject.pictures
            assert form is not None
            found.append(subject.measure(partial(attack.attack_task, form), execution="vmap").per_task)
            trained = "clean queries" if name == "glyphs" else "attacked queries"
            yield algo, trained, *(show(estimate(scores)) for scores in found[-1].values())
        yield (
            algo,
            "difference, paired",
            *(show(compare(*pair)) for pair in zip(*(scores.values() for scores in reversed(found)))),
        )


def shift_datasets(place: Place) -> Iterator[Row]:
    """Runs on test classes of their own dataset, and on datasets that they were not trained on."""
    names = ("omniglot", "glyphs", "miniimagenet")
    yield "trained on", "method", *names
    for own, algo in (("glyphs", "protonet"), *(("omniglot", algo) for algo in ("protonet", "matchingnet", "maml"))):
        others = {name: {"name": name} for name in names if name != own}
        run = f"{algo}-{own}"
        table = place.probe(run, "shift", 200, "eval.shots=5", ways=[5], shots=[5], queries=5, datasets=others)
        found = {row["data"]: show(row["accuracy"]) for row in table}
        yield own, algo, *(found.get(name, found[OWN]) for name in names)


def move_losses(place: Place) -> Iterator[Row]:
    """The loss that ML3 learned on sinusoids, elsewhere and for longer; the mean over seeds."""
    tests: list[tuple[str, int, dict[str, Any]]] = [("sines", 10, {}), ("sines", 100, {})]
    tests += [(f"{wave} waves", 10, {"name": "waves", "wave": wave}) for wave in ("triangle", "sawtooth", "square")]
    yield "mse of", "inner steps", "learned loss", "squared error", "difference, paired"
    for what, steps, data in tests:
        change = f"eval.algo.inner_steps={steps}"
        learned, usual = (
            torch.stack([place.score(f"sines-{loss}-{seed}", 300, change, **data) for seed in SEEDS]).mean(0)
            for loss in ("learned", "usual")
        )
        found = (estimate(learned), estimate(usual), compare(learned, usual))
        yield what, str(steps), *(show(value, "mse") for value in found)


def move_classes(place: Place) -> Iterator[Row]:
    """Losses that were learned on glyphs, on other pictures and for longer, beside cross-entropy at the same rate."""
    entropy = [f"eval.algo.{word}" for word in ("name=maml", "inner_lr=0.1", "first_order=false")]
    runs: dict[str, tuple[tuple[str, list[str]], ...]] = {
        "ml3": (("ml3-glyphs", []), ("ml3-usual", [])),
        "metal": (("metal-glyphs", []), ("metal-glyphs", entropy)),
    }
    yield "method", "pictures", "inner steps", "learned loss", "cross-entropy", "difference, paired"
    for algo, compared in runs.items():
        own = 5 if algo == "ml3" else 2
        for data, steps in (("glyphs", own), ("glyphs", 10 * own), ("omniglot", own), ("miniimagenet", own)):
            learned, usual = (
                place.score(name, 200, f"eval.algo.inner_steps={steps}", *changes, name=data)
                for name, changes in compared
            )
            found = (estimate(learned), estimate(usual), compare(learned, usual))
            yield algo, data, str(steps), *map(show, found)


EXPERIMENTS = {  # name -> the page, and what yields the table: its header first
    "norms": ("robustness", compare_norms),
    "frozen": ("robustness", freeze_layers),
    "attacked": ("robustness", attack_queries),
    "shift": ("robustness", shift_datasets),
    "losses": ("reports", move_losses),
    "classes": ("reports", move_classes),
}


def main(folder: str, *names: str) -> None:
    for name in names or EXPERIMENTS:
        page, measure = EXPERIMENTS[name]
        header, *rows = measure(Place(Path(folder).absolute()))
        table = format_table(header, rows)
        print(table, flush=True)
        file = ROOT / f"docs/{page}.md"
        marks = START.format(name), END.format(name)
        before, _, rest = file.read_text(encoding="utf-8").partition(marks[0])
        file.write_text(f"{before}{marks[0]}\n{table}\n{marks[1]}{rest.partition(marks[1])[2]}", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
