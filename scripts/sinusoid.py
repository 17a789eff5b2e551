"""Draw one wave as every method of regression sees it: the points it is shown, the truth, and what it predicts.

All are trained on the sinusoids of Finn et al. 2017 with 10 points per task, by the settings of their experiment where
they have one. Prints a table and writes the figure as sinusoid.png into the given folder; runs stay in --runs.

    python scripts/sinusoid.py docs/images
"""

import argparse
import math
import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure

import metarun
from metarun.config.registry import metric
from metarun.core.seeding import generator_for
from metarun.reports.text import format_table

POINTS, AMPLITUDE, PHASE = 10, 3.0, 1.0
COMMON = f"dataset=sinusoid ways=1 shots={POINTS} queries={POINTS} optimizer.lr=1e-3 trainer.tasks_per_step=25"
LENGTH = "trainer.steps=5000 trainer.eval_every=1000 eval.val_tasks=200 eval.tasks=600 eval.shots=10 eval.queries=100"
STEPS = "algo.inner_lr=0.01 algo.inner_steps=5"
METHODS = {  # name -> settings
    "maml": "experiment=maml/sinusoid",
    "metasgd": "experiment=metasgd/sinusoid",
    "mamlpp": f"algo=mamlpp {COMMON} {STEPS}",
    "alfa": f"algo=alfa {COMMON} {STEPS}",
    "anil": f"algo=anil {COMMON} {STEPS}",
    "boil": f"algo=boil {COMMON} {STEPS}",
    "reptile": "experiment=reptile/sinusoid",
    "imaml": "experiment=imaml/sinusoid",
    "cavia": "experiment=cavia/sinusoid",
    "bmaml": "experiment=bmaml/sinusoid",
    "metalstm": "experiment=metalstm/sinusoid",
    "ml3": "experiment=ml3/sinusoid",
    "r2d2": f"algo=r2d2 {COMMON}",
    "dkt": f"algo=dkt algo.kernel=spectral {COMMON}",
}


def train(name: str, folder: Path) -> metarun.Run:
    """The run of a method, trained if it is not there yet."""
    shots = "" if name == "reptile" else f"shots={POINTS}"  # whose inner loop of training sees more points
    return metarun.run(*f"{METHODS[name]} {shots} {LENGTH} hydra.run.dir={folder}".split())


def main(args: argparse.Namespace) -> int:
    x = 10 * torch.rand(POINTS, 1, generator=generator_for("figure")) - 5
    line = torch.linspace(-5, 5, 201)[:, None]
    y, truth = (AMPLITUDE * torch.sin(at - PHASE) for at in (x, line))
    figure = Figure(figsize=(14, 6), layout="constrained")
    axes = figure.subplots(2, math.ceil(len(METHODS) / 2), sharex=True, sharey=True)
    rows = []
    for name, axis in zip(METHODS, axes.flat):
        run = train(name, args.runs / name)
        regressor = metarun.load(run.folder, device="cpu").adapt((x, y))
        assert isinstance(regressor, metarun.Regressor)
        error = run.result.estimate("test")
        assert isinstance(error.mean, float)
        assert not isinstance(error.ci95, list)
        rows.append((f"`{name}`", metric("mse").shown(error.mean, error.ci95).removeprefix("mse ")))
        axis.plot(line, truth, color="0.7", linewidth=4, label="truth")
        axis.plot(line, regressor.predict(line), color="C0", label="prediction")
        axis.plot(x, y, "o", color="C3", label="points seen")
        axis.set(title=f"{name}: mse {error.mean:.3f}", ylim=(-1.5 * AMPLITUDE, 1.5 * AMPLITUDE))
    for axis in axes.flat[len(METHODS) :]:
        axis.axis("off")
    axes.flat[0].legend()
    args.folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.folder / "sinusoid.png", dpi=120)
    print(format_table(("method", "mse of 600 test tasks"), rows))
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where sinusoid.png is written")
    parser.add_argument("--runs", type=Path, default=Path("outputs/sinusoid"), help="where the runs are kept")
    sys.exit(main(parser.parse_args()))
