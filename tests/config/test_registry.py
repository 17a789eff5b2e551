"""What the registry reads from source is what the classes are; names are found, built and never taken twice."""

import dataclasses
import importlib
import inspect

import pytest

from metarun.config import registry
from metarun.config.errors import ConfigError
from metarun.config.registry import GROUPS, build, declaration, known, register

COMPONENTS = [(group, name) for group in GROUPS for name in known(group)]


def test_components_are_found() -> None:
    assert {"maml", "anil", "protonet"} <= set(known("algo"))
    assert all(known(group) for group in GROUPS)


@pytest.mark.parametrize(("group", "name"), COMPONENTS)
def test_a_declaration_read_from_source_is_the_class_itself(group: str, name: str) -> None:
    declared = declaration(group, name)
    importlib.import_module(declared.module)
    component = registry._classes[group, name]
    assert set(declared.settings) | set(declared.runtime) == {field.name for field in dataclasses.fields(component)}
    assert declared.doc == inspect.cleandoc(component.__doc__ or "")
    assert declared.doc
    for constant, value in declared.constants.items():
        assert getattr(component, constant) == value
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
    with pytest.raises(ValueError, match="algo=maml is already"):

        @register("algo", "maml")
        class Another:
            pass
