"""Where the time of a step goes, and what is told while it is measured."""

import pytest

from tests.conftest import TINY, Command


@pytest.mark.integration
def test_the_parts_of_a_step_are_told_and_add_up(metarun: Command) -> None:
    answer = metarun("profile", *TINY, "algo=protonet", "trainer.steps=400")  # of which `auto` may time 12
    assert answer.code == 0, answer.err
    said, table = answer.out.partition("part of a step")[::2]
    assert "choosing how to execute a step, which takes at most 3 % of the time of 400 steps" in said
    assert "validation" in said
    parts = {line[:24].strip(): float(line[24:34]) for line in table.splitlines()[1:8]}
    whole = parts.pop("together")
    assert sum(parts.values()) == pytest.approx(whole, abs=0.04)  # each is rounded to 0.01 ms
