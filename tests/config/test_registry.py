"""What the registry reads from source is what the classes are; names are found, built and never taken twice."""

import dataclasses
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

from metarun.config.errors import ConfigError
from metarun.config.registry import (
    GROUPS,
    build,
    declaration,
    known,
    lookup,
    metric,
    read_declarations,
    register,
    registered_traits,
)

COMPONENTS = [(group, name) for group in GROUPS for name in known(group)]


def test_components_are_found() -> None:
    assert {"maml", "anil", "protonet"} <= set(known("algo"))
    assert all(known(group) for group in GROUPS)


@pytest.mark.parametrize(("group", "name"), COMPONENTS)
def test_a_declaration_read_from_source_is_the_class_itself(group: str, name: str) -> None:
    declared = declaration(group, name)
    component = lookup(group, name)
    assert set(declared.settings) | set(declared.runtime) == {field.name for field in dataclasses.fields(component)}
    assert declared.doc == inspect.cleandoc(component.__doc__ or "")
    assert declared.doc
    assert declared.traits == registered_traits(component)
    assert all(field.default is dataclasses.MISSING for field in dataclasses.fields(component)), "defaults are YAML's"


def test_settings_are_converted_and_all_misfits_told_at_once() -> None:
    adam = {"name": "adam", "lr": 1, "betas": [0, 0.9], "eps": 1e-8, "weight_decay": 0}
    assert build("optimizer", adam).lr == 1.0
    with pytest.raises(ConfigError) as error:
        build("optimizer", {"name": "adam", "lr": -1, "beta": [0.9, 0.9], "eps": "x", "weight_decay": 0})
    assert sorted(str(error.value).splitlines()) == [
        "optimizer.beta: no such setting (did you mean betas?)",
        "optimizer.betas: missing",
        "optimizer.eps is 'x': it must be a number",
        "optimizer.lr is -1.0: it must be above 0",
    ]


def test_a_name_is_not_taken_twice() -> None:
    lookup("algo", "maml")
    with pytest.raises(ValueError, match="algo=maml is already"):

        @register("algo", "maml")
        class Another:
            pass


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        (
            "Postive",
            "place.Net.lr: Postive is neither a type of setting nor given by the wiring (did you mean Positive?)",
        ),
        (
            "list[Cuont]",
            "place.Net.lr: Cuont is neither a type of setting nor given by the wiring (did you mean Count?)",
        ),
    ],
)
def test_a_mistyped_type_is_an_error_and_no_field_of_the_wiring(tmp_path: Path, annotation: str, message: str) -> None:
    (tmp_path / "place.py").write_text(
        f'@register("algo", "net", Traits(kinds=()))\nclass Net:\n    lr: {annotation}\n'
    )
    with pytest.raises(ConfigError) as error:
        list(read_declarations("place", tmp_path / "place.py"))
    assert str(error.value) == message


def test_traits_are_written_out(tmp_path: Path) -> None:
    (tmp_path / "place.py").write_text('TRAITS = 1\n@register("algo", "net", TRAITS)\nclass Net:\n    lr: int\n')
    with pytest.raises(ConfigError, match=r"place\.Net: register takes one of Traits, "):
        list(read_declarations("place", tmp_path / "place.py"))


def test_metrics_are_shown_and_compared_by_what_they_declare() -> None:
    accuracy, mse = metric("accuracy"), metric("mse")
    assert accuracy.shown(0.98125, 0.0025) == "98.12 ± 0.25 %"
    assert mse.shown(0.5, 0.04) == "0.5000 ± 0.0400"
    assert (accuracy.better(0.9, 0.8), mse.better(0.9, 0.8)) == (True, False)
    assert accuracy.allowed(98.7) == 1.0
    assert mse.allowed(0.35) == pytest.approx(0.035)
    assert (accuracy.worst, mse.worst) == (0.0, 1e9)


def test_an_algorithm_without_traits_is_refused(tmp_path: Path) -> None:
    (tmp_path / "place.py").write_text('@register("algo", "net")\nclass Net:\n    lr: int\n')
    with pytest.raises(ConfigError, match=r"place\.Net: register needs Traits\(\.\.\.\) as its third argument"):
        list(read_declarations("place", tmp_path / "place.py"))


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("def (\n", "line 1: invalid syntax"),
        ('@register("algo", "net", Traits(kinds=()))\nclass Net:\n    lr: Postive\n', "Postive is neither a type"),
        ('@register("algo", "maml", Traits(kinds=()))\nclass Net:\n    lr: int\n', "algo=maml is declared twice"),
        (None, "there is no module broken_plugin"),
        ('@register("algo", "net", Traits())\nclass Net:\n    lr: int\n', "broken_plugin.Net: Traits.kinds: missing"),
        (
            '@register("dataset", "net", DatasetTraits(kind="regresion"))\nclass Net:\n    lr: int\n',
            "DatasetTraits.kind is 'regresion': choose from classification, regression, control "
            "(did you mean regression?)",
        ),
    ],
)
def test_a_broken_package_of_others_is_named_and_stops_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str | None, reason: str
) -> None:
    """An installed package, with the metadata that pip would write; read in a process of its own."""
    info = tmp_path / "broken-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[metarun]\nbroken = broken_plugin\n")
    if source is not None:
        (tmp_path / "broken_plugin.py").write_text(f"# @register(\n{source}" if "register" not in source else source)
    program = (
        "from metarun.config.registry import ConfigError, broken_packages, declaration\n"
        "declaration('algo', 'maml')\n"
        "print(broken_packages())\n"
        "try: declaration('algo', 'net')\n"
        "except ConfigError as error: print(error)\n"
    )
    paths = [str(tmp_path), str(Path(__file__).parents[2])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    listed, told = done.stdout.splitlines()
    for text in (listed, told):
        assert "the package broken_plugin of broken cannot be used: " in text
        assert reason.replace("line 1", "line 2") in text
    assert told.startswith("algo.name is 'net': the nearest of ")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import no_such_package", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("raise RuntimeError('first\\nsecond')", "RuntimeError: first"),
    ],
)
def test_a_package_of_others_whose_import_fails_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, reason: str
) -> None:
    (tmp_path / "broken-1.dist-info").mkdir()
    (tmp_path / "broken-1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1\n")
    (tmp_path / "broken-1.dist-info/entry_points.txt").write_text("[metarun]\nbroken = failing_plugin\n")
    component = '@register("algo", "net", Traits(kinds=("classification",)))\nclass Net:\n    lr: int\n'
    (tmp_path / "failing_plugin.py").write_text(f"{source}\n{component}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])]))
    program = (
        "from metarun.config.registry import ConfigError, lookup\n"
        "try: lookup('algo', 'net')\n"
        "except ConfigError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == (
        f"algo=net is in the package failing_plugin of broken, whose import fails: {reason}"
    ), done.stderr
