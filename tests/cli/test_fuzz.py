"""Requests of all kinds, drawn from the real groups, settings and values: each is taken, or refused line by line.

METARUN_FUZZ is how many are tried; CONTRIBUTING.md says when to raise it.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from metarun.cli.commands import COMMANDS
from metarun.cli.compose import change, compose, find_folder
from metarun.cli.hydra_app import CONFIGS, Request
from metarun.cli.sweep import plan
from metarun.config.errors import ConfigError
from metarun.config.load import load_settings, resolve

CASES = int(os.environ.get("METARUN_FUZZ", "500"))
PARTS = 4  # of the requests, which processes share
INTERNAL = re.compile(
    r"Traceback|omegaconf|antlr|(Dict|List)Config\b|\w+Node\b|NoneType|<class|object at 0x|\w*Error\b"
)
OPTIONS = {
    folder.name: [file.relative_to(folder).with_suffix("").as_posix() for file in sorted(folder.rglob("*.yaml"))]
    for folder in sorted(CONFIGS.iterdir())
    if folder.is_dir()
} | {"hydra/launcher": ["basic", "joblib", "ray"], "hydra/sweeper": ["basic", "optuna", "ax"]}


def list_keys(values: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    """Every dotted key of a configuration."""
    for key, value in values.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from list_keys(value, f"{prefix}{key}.")


COMPOSED = [
    compose(asked)
    for asked in (["algo=protonet", "dataset=folder"], ["algo=cavia", "dataset=sinusoid", "optimizer=sgd"], [])
]
VALUES = resolve(COMPOSED[-1])  # of a run, as its folder has them
KEYS = sorted({key for config in COMPOSED for key in list_keys(resolve(config))})
OTHERS = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.run", "hydra.launcher", "hydra.job.name")
PATHS = st.sampled_from([*KEYS, *OTHERS]) | st.sampled_from(
    ["", "x", "hydra", "trainer.", ".", "seed.x", "algo.x", "eval.algo.x", "eval.variants.x.ways", "dataset.x.y", "a@b"]
)

SCALARS = st.sampled_from(
    [
        *("", "0", "1", "-1", "3", "1e3", "1.5", "1e400", "nan", "-inf", "9" * 20, "9" * 400, "true", "null", "???"),
        *(
            "a",
            "best",
            "cpu",
            "x" * 300,
            "../..",
            "/nowhere/x",
            "é",
            "'a b'",
            '"a=b"',
            "'",
            '"',
            "\\",
            "a\\,b",
            "'\\n'",
        ),
        *("${seed}", "${ways}", "${algo}", "${algo.name}", "${nowhere}", "${.x}", "${", "${}", "${oc.env:NOWHERE}"),
        *(
            "${oc.env:HOME}",
            "${oc.decode:'[1'}",
            "${nothing:1}",
            "${hydra:run.dir}",
            "${hydra:nothing}",
            "${run_name:}",
        ),
        *(
            "'${seed'",
            "${oc.select:seed}",
            "${oc.dict.keys:algo}",
            "${oc.create:{a:1}}",
            "int(3)",
            "float(a)",
            "str([1])",
        ),
    ]
)
LISTS = st.lists(SCALARS, max_size=2).map(lambda items: f"[{','.join(items)}]")
TABLES = st.lists(
    st.tuples(st.sampled_from(["a", "name", "ways", "1", "'a b'", "null", ""]), SCALARS | LISTS), max_size=2
)
MAPPINGS = TABLES.map(lambda items: "{" + ",".join(f"{key}:{value}" for key, value in items) + "}")
PLAIN = SCALARS | LISTS | MAPPINGS | st.text(max_size=5)
SWEEPS = st.lists(SCALARS, min_size=2, max_size=2).map(",".join) | st.sampled_from(
    [
        "range(2)",
        "range(3,1)",
        "choice(1,2)",
        "interval(0,1)",
        "glob(ma*)",
        "glob(*w*)",
        "sort(3,1)",
        "shuffle(1,2)",
        "tag(a,1)",
    ]
)
SIGNS = st.sampled_from(["", "", "", "", "+", "++", "~"])


def set_option(group: str) -> st.SearchStrategy[str]:
    options = st.sampled_from(OPTIONS[group])
    values = options | options.map(lambda option: f"[{option}]") | options.map(lambda option: option[:-1]) | PLAIN
    return st.builds("{}{}={}".format, SIGNS, st.just(group), values)


def list_settings(values: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    """Every single value of a configuration as an override that changes nothing."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from list_settings(value, f"{prefix}{key}.")
        elif isinstance(value, bool | int | float) or value is None:
            yield f"{prefix}{key}={'null' if value is None else str(value).lower()}"


VALID = st.sampled_from(
    [
        *list_settings(VALUES),
        *(f"{group}={option}" for group in OPTIONS if "/" not in group for option in OPTIONS[group]),
    ]
)
OVERRIDES = st.one_of(
    VALID,
    VALID,
    st.builds("{}{}={}".format, SIGNS, PATHS, PLAIN),
    st.sampled_from(sorted(OPTIONS)).flatmap(set_option),
    st.builds("~{}".format, PATHS | st.sampled_from(sorted(OPTIONS))),
    st.text(max_size=8),
)
OPTION_WORDS = st.sampled_from(
    ["--cfg=job", "--resolve", "--config-name=x", "--info=all", "--no", "--package=a", "-c", "list"]
)
SINGLE = st.tuples(st.lists(OVERRIDES, min_size=1, max_size=3), st.lists(OPTION_WORDS, max_size=1)).map(
    lambda t: t[0] + t[1]
)
SWEPT = st.builds("{}={}".format, PATHS | st.sampled_from(sorted(OPTIONS)), SWEEPS)
MULTIRUN = st.tuples(SWEPT, st.lists(OVERRIDES, max_size=1)).map(lambda t: ["--multirun", t[0], *t[1]])


def ask(words: Sequence[str]) -> None:
    """All that is checked before a run's components are built. Raises ConfigError."""
    request = Request.parse(words, COMMANDS)
    if request.multirun:
        plan(request)
        return
    config = compose(request.overrides, request.config_dir, request.config_name)
    load_settings(resolve(config))
    find_folder(config, "hydra.run.dir")


def assert_told(error: ConfigError, words: Sequence[str]) -> None:
    """Lines that can be printed, without the names of what metarun is made of."""
    lines = str(error).split("\n")
    assert all(line.strip() and line.isprintable() for line in lines), lines
    found = INTERNAL.search(str(error))
    assert not found or any(found[0] in word for word in words), lines


@pytest.fixture(autouse=True, scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An empty working folder."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("place"))
    yield
    os.chdir(before)


@pytest.mark.parametrize("part", range(PARTS))
@settings(max_examples=CASES // PARTS, suppress_health_check=list(HealthCheck), print_blob=True)
@given(words=st.one_of(SINGLE, SINGLE, SINGLE, MULTIRUN))
def test_a_request_is_taken_or_refused_line_by_line(part: int, words: list[str]) -> None:
    try:
        ask(words)
    except ConfigError as error:
        assert_told(error, words)
    assert list(Path().iterdir()) == []


@settings(max_examples=CASES // PARTS)
@given(st.lists(OVERRIDES, max_size=2))
@example(["encoder=efficientnet_lite0"])
def test_a_change_of_a_finished_run_is_taken_or_refused_line_by_line(words: list[str]) -> None:
    try:
        load_settings(change(VALUES, words))
    except ConfigError as error:
        assert_told(error, words)
