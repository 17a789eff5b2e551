"""Conversion of settings: what has the declared type stays or becomes it, anything else is reported under its key."""

import math
from typing import Any, Literal, get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from metarun.config.schema import Count, Fraction, NonNegative, Norm, Positive, Whole
from metarun.config.validate import convert, convert_fields

SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5))
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)
RANGES: dict[str, tuple[Any, Any]] = {
    "Count": (Count, lambda x: x == int(x) and x >= 1),
    "Whole": (Whole, lambda x: x == int(x) and x >= 0),
    "Positive": (Positive, lambda x: x > 0),
    "NonNegative": (NonNegative, lambda x: x >= 0),
    "Fraction": (Fraction, lambda x: 0 <= x <= 1),
}
KINDS = [int, float, bool, str, *(kind for kind, _ in RANGES.values()), Norm, list[Count], dict[str, Positive]]


@pytest.mark.parametrize("name", RANGES)
@given(value=st.one_of(st.integers(-(10**30), 10**30), st.floats()))
@example(value=2**53 + 1)
@example(value=float("inf"))
def test_a_number_is_kept_exactly_where_it_is_in_range(name: str, value: float) -> None:
    kind, holds = RANGES[name]
    problems: list[str] = []
    converted = convert(value, kind, "key", problems)
    represented = math.isfinite(value) and get_args(kind)[0](value) == value  # no float is 2**53 + 1
    if represented and holds(value):
        assert problems == []
        assert converted == value
        assert type(converted) is get_args(kind)[0]
    else:
        (problem,) = problems
        assert problem.startswith("key is ")
        assert ": it must be " in problem


@pytest.mark.parametrize("kind", KINDS)
@given(value=ANYTHING)
def test_any_value_is_converted_or_reported_and_converting_again_changes_nothing(kind: Any, value: Any) -> None:
    problems: list[str] = []
    converted = convert(value, kind, "key", problems)
    if problems:
        assert all(problem.startswith("key") for problem in problems)
    else:
        again: list[str] = []
        assert convert(converted, kind, "key", again) == converted
        assert again == []


@given(value=ANYTHING)
def test_an_optional_setting_takes_null_and_what_the_type_takes(value: Any) -> None:
    plain: list[str] = []
    optional: list[str] = []
    expected = convert(value, Count, "key", plain)
    found = convert(value, Count | None, "key", optional)
    if value is None:
        assert (found, optional) == (None, [])
    else:
        assert (found, optional) == (expected, plain) or not isinstance(value, int | float)


@given(value=SCALARS)
def test_a_choice_is_one_of_its_options(value: Any) -> None:
    problems: list[str] = []
    convert(value, Literal["batch", "running"], "key", problems)
    assert (problems == []) == (value in ("batch", "running"))


@given(given_keys=st.sets(st.sampled_from("abcdef")), declared=st.sets(st.sampled_from("abcdef")))
def test_unknown_and_missing_keys_are_all_reported(given_keys: set[str], declared: set[str]) -> None:
    problems: list[str] = []
    converted = convert_fields(dict.fromkeys(given_keys, 1), dict.fromkeys(declared, int), "group", problems)
    assert converted.keys() == given_keys & declared
    missing = {f"group.{key}: missing" for key in declared - given_keys}
    assert missing == {problem for problem in problems if problem.endswith(": missing")}
    unknown = {problem.split(":")[0] for problem in problems} - {f"group.{key}" for key in declared - given_keys}
    assert unknown == {f"group.{key}" for key in given_keys - declared}
