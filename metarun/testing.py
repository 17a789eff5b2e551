"""Generic tests for packages that add a method, a dataset or a network.

Each function takes the name of an option (its YAML file's) and further overrides, as on the command line, and raises
AssertionError with one line that says which check failed and how. `metarun check algo=NAME` runs the same checks.

    from metarun.testing import check_algorithm

    def test_my_method():
        check_algorithm("my_method", "algo.inner_steps=2")
"""

from metarun.cli.check import find_checks

__all__ = ["check_algorithm", "check_backbone", "check_dataset"]


def check_algorithm(name: str, *overrides: str) -> None:
    """Check a method: where its weights come from, its meta-gradient, what it sees of queries, and that it can resume.

    The meta-gradient of a batch must equal that of a plain loop and of chunks, in float64, and the slope of the loss.
    Raises AssertionError, or ConfigError if there is no such method or its settings are wrong.
    """
    _run(f"algo={name}", overrides)


def check_dataset(name: str, *overrides: str) -> None:
    """Check a dataset: tasks follow from the generator alone; support and queries, and splits, share no example.

    The data must be there. Raises AssertionError, or ConfigError if there is no such dataset or its data is missing.
    """
    _run(f"dataset={name}", overrides)


def check_backbone(name: str, *overrides: str) -> None:
    """Check a network: its features, and MAML's meta-gradient through it, in float64, as in `check_algorithm`.

    Make it small by overrides, for example "backbone.filters=4"; pictures are of `dataset.image_size`, 28 by default.
    Raises AssertionError, or ConfigError if there is no such network or it cannot read such pictures.
    """
    _run(f"backbone={name}", overrides)


def _run(component: str, overrides: tuple[str, ...]) -> None:
    for check in find_checks(component, overrides):
        try:
            check.run()
        except AssertionError as error:
            raise AssertionError(f"{component}: {check.title}: {error}") from error
