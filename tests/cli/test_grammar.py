"""Overrides: every text is read, or refused in one line."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metarun.cli.grammar import LIMIT, expand, parse
from metarun.cli.hydra_app import OPEN_TABLES, Request, search
from metarun.config.errors import ConfigError

T = TypeVar("T")

PIECES = (
    *("a", "seed", "algo", "eval.algo.", "hydra.", "=", ",", ":", ".", "/", "~", "+", "++", "@", "$", "${x}", "*", "?"),
    *("[", "]", "{", "}", "(", ")", "'", '"', "\\", " ", "\n", "\t", "\x00", "#", "é", "-", "--cfg", "--multirun"),
    *("choice(", "range(", "interval(", "glob(", "sort(", "shuffle(", "tag(", "int(", "float(", "str(", "bool("),
    *("0", "1", "-1", "1.5", "1e400", "nan", "inf", "null", "true", "9" * 20, "9" * 5000),
)
TEXTS = st.lists(st.sampled_from(PIECES), max_size=8).map("".join) | st.text(max_size=15)
OVERRIDES = TEXTS | TEXTS.map(lambda text: f"a={text}")


def read_or_refuse(read: Callable[[], T]) -> T | None:
    """The answer of `read`, or None if it raised ConfigError; the message must be one line."""
    try:
        return read()
    except ConfigError as error:
        message = str(error)
    assert message.isprintable(), repr(message)
    return None


@settings(max_examples=500, deadline=None)
@given(OVERRIDES)
def test_a_text_is_an_override_or_refused_in_one_line(text: str) -> None:
    found = read_or_refuse(lambda: parse([text]))
    if found is not None:
        (override,) = found
        assert override.input_line == text


@settings(max_examples=200, deadline=None)
@given(st.lists(OVERRIDES, max_size=3))
def test_a_sweep_has_jobs_of_single_values_or_is_refused_in_one_line(texts: list[str]) -> None:
    with search() as loader:
        first = read_or_refuse(lambda: next(expand(texts, loader)))
    if first is not None:
        assert len(first) == len(texts)
        assert not any(override.is_sweep_override() for override in parse(first))


@settings(max_examples=200, deadline=None)
@given(st.lists(OVERRIDES.filter(lambda text: not text.startswith("-") and "=~" not in text), max_size=4))  # =~: home
def test_a_request_keeps_its_overrides_or_is_refused_in_one_line(texts: list[str]) -> None:
    request = read_or_refuse(lambda: Request.parse(["--multirun", *texts], ["list"]))
    if request is not None:
        assert request.multirun
        assert [text.removeprefix("++") if text.startswith("++eval") else text for text in request.overrides] == texts


@given(st.integers(), st.floats(allow_nan=False), st.booleans())
def test_values_are_read_as_what_they_are(whole: int, real: float, truth: bool) -> None:
    for value in (whole, real, truth):
        (override,) = parse([f"a={value}"])
        assert override.value() == value


@pytest.mark.parametrize(
    ("texts", "jobs"),
    [
        (["seed=1,2", "ways=3"], [["seed=1", "ways=3"], ["seed=2", "ways=3"]]),
        (["seed=range(1,3)"], [["seed=1"], ["seed=2"]]),
        (["algo=glob(ma*)"], [["algo=maml"], ["algo=maml_rl"], ["algo=mamlpp"], ["algo=mann"], ["algo=matchingnet"]]),
        (["optimizer.lr=interval(0.1,1)"], [["optimizer.lr=0.1"]]),
        ([], [[]]),
    ],
)
def test_the_jobs_of_a_sweep(texts: Sequence[str], jobs: list[list[str]]) -> None:
    with search() as loader:
        assert list(expand(texts, loader)) == jobs


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed=range(3,1)", "seed=range(3,1) stands for no values"),
        ("nothing=glob(*)", "nothing=glob(*) stands for no values"),
        ("seed=range(0,1000000000)", f"seed=range(0,1000000000) stands for more than {LIMIT} values"),
        ("seed=range(0,3,0)", "seed=range(0,3,0) cannot be read: quote special characters twice, as 'name=\"a = b\"'"),
        ("a\n=3", "'a\\n=3' cannot be read: quote special characters twice, as 'name=\"a = b\"'"),
    ],
)
def test_what_is_no_sweep(text: str, message: str) -> None:
    with search() as loader, pytest.raises(ConfigError) as told:
        list(expand([text], loader))
    assert str(told.value) == message


@pytest.mark.parametrize("key", OPEN_TABLES)
def test_keys_of_open_tables_need_no_plus(key: str) -> None:
    assert Request.parse([f"{key}.new=1"], []).overrides == [f"++{key}.new=1"]
    assert Request.parse([f"{key}={{new:1}}"], []).overrides == [f"++{key}={{new:1}}"]


def test_hydra_gets_its_options_in_front_of_the_overrides() -> None:
    words = ["seed=1", "--cfg", "job", "ways=3", "--config-dir", "mine", "-m"]
    request = Request.parse(words, [])
    assert request == Request(["seed=1", "ways=3"], "mine", multirun=True, flags={"cfg": "job"})
    assert request.arguments() == [
        "--config-name=config",
        "--multirun",
        "--cfg=job",
        *request.overrides,
    ]
