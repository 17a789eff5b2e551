"""metarun: train, test and compare few-shot and meta-learning methods.

The functions here do what the commands do, from Python; `__all__` lists what is kept from version to version.
Importing the package is cheap: PyTorch is imported when a function first needs it.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from metarun.config.errors import ConfigError, Failed, Stopped
from metarun.config.registry import register
from metarun.config.version import __version__

if TYPE_CHECKING:
    from metarun.runs.model import Model, Run
    from metarun.runs.prediction import Classifier, Prediction, Regressor

__all__ = [
    "Classifier",
    "ConfigError",
    "Failed",
    "Model",
    "Prediction",
    "Regressor",
    "Run",
    "Stopped",
    "__version__",
    "collect",
    "load",
    "register",
    "run",
]


def run(*overrides: str) -> "Run":
    """Train and test a model, and write its folder, as `metarun OVERRIDES` does.

    A run that is finished already is returned at once; one that was stopped goes on from its last checkpoint.
    The folder is below outputs/ unless `hydra.run.dir=FOLDER` names another.

    Raises ConfigError for a mistake in the overrides, Failed if training diverges or the machine runs out of something,
    Stopped after a signal.

    >>> import metarun
    >>> small = ["dataset.classes_train=8", "dataset.classes_val=5", "dataset.classes_test=5", "backbone.filters=4"]
    >>> short = ["trainer.steps=2", "trainer.workers=1", "eval.tasks=10", "eval.val_tasks=5", "device=cpu"]
    >>> done = metarun.run("algo=protonet", "hydra.run.dir=first", *small, *short)  # doctest: +ELLIPSIS
    protonet on glyphs ...
    >>> done.folder.name, done.result.training.steps
    ('first', 2)
    >>> accuracy = done.result.estimate("test")
    >>> bool(accuracy.mean == done.scores["test"].mean())
    True
    """
    from metarun.cli.launch import run_here
    from metarun.runs.model import Run

    return Run(*run_here(overrides))


def load(folder: str | Path, *, device: str = "auto", checkpoint: str = "best") -> "Model":
    """Load a trained model from a run's folder, or from a checkpoint file. No dataset has to be there.

    device: `auto`, cpu, cuda, cuda:1, mps. checkpoint: `best` (by validation), `last`, or `best-STEP` if several were
    kept. Raises ConfigError if there is no such checkpoint, or it cannot be read.

    >>> import metarun, torch
    >>> model = metarun.load("first", device="cpu")
    >>> model
    Model(algo=protonet, classification of inputs 1x28x28, step 2, cpu)

    Adapt it to a support set of any classes, and ask for the classes of other inputs:

    >>> pictures = torch.rand(5, 1, 28, 28)
    >>> classifier = model.adapt({"round": pictures[:2], "square": pictures[2:5]})
    >>> prediction = classifier.predict(pictures)
    >>> prediction.classes
    ['round', 'square']
    >>> len(prediction.labels), prediction.probabilities.shape
    (5, torch.Size([5, 2]))
    >>> model.embed(pictures).shape
    torch.Size([5, 4])

    Pictures may be files too, `model.adapt("support/").predict("query/")` with a folder for each class, or what Pillow
    has opened, of any size:

    >>> from PIL import Image
    >>> first, second = Image.linear_gradient("L"), Image.radial_gradient("L")
    >>> model.adapt({"linear": [first], "radial": [second]}).predict([second, first]).labels
    ['radial', 'linear']
    """
    from metarun.runs.model import load as load_model

    return load_model(folder, device=device, checkpoint=checkpoint)


def collect(folder: str | Path = "outputs") -> list[dict[str, Any]]:
    """Collect the results of all finished runs below a folder: a flat record for each row of each run's test.

    A record has strings and numbers alone: algo, dataset, ways, shots, seed, row, metric, mean, ci95, steps, seconds,
    folder, ... Raises ConfigError if there is no finished run.

    >>> import metarun
    >>> record = metarun.collect("first")[0]
    >>> record["algo"], record["dataset"], record["row"], record["metric"], record["steps"]
    ('protonet', 'glyphs', 'test', 'accuracy', 2)

    With pandas: `pandas.DataFrame(metarun.collect())`.
    """
    from metarun.reports.records import read_records

    return read_records(folder)


def __getattr__(name: str) -> Any:
    """Import a class of `__all__` when it is first asked for."""
    if name in __all__:
        from metarun.runs import model, prediction

        return getattr(model if hasattr(model, name) else prediction, name)
    raise AttributeError(f"module 'metarun' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
