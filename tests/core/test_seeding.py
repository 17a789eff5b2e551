"""Hashed numbers: uniform, the same everywhere, and not shared between tasks."""

from itertools import islice

import torch
from torch.func import vmap

from metarun.core.seeding import SALTS, draw_uniform, generator_for, hash_uniform
from tests.reference.worlds import uniform_numbers


def draw_salts(count: int) -> torch.Tensor:
    return torch.randint(SALTS, (count,), generator=generator_for("salts"))


def test_numbers_are_those_of_the_hash_in_whole_numbers_of_python() -> None:
    for salt, purpose in zip(draw_salts(4), (0, 1, 7, -1)):
        expected = torch.tensor(list(islice(uniform_numbers(int(salt), purpose), 12)), dtype=torch.float64)
        found = draw_uniform(salt, 3, 4, purpose=purpose, dtype=torch.float64)
        torch.testing.assert_close(found.flatten(), expected, rtol=0, atol=0)
        torch.testing.assert_close(draw_uniform(salt, 3, 4, purpose=purpose).double(), found, rtol=0, atol=0)


def test_numbers_are_uniform_and_never_at_an_end() -> None:
    """Of a million numbers the mean deviates by 0.0003, a tenth's share by 0.0003 and a correlation by 0.001."""
    numbers = vmap(lambda salt: draw_uniform(salt, 1000, dtype=torch.float64))(draw_salts(1000))
    assert numbers.min() > 0
    assert numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 0.0015
    shares = torch.histc(numbers, 10, 0, 1) / numbers.numel()
    assert (shares - 0.1).abs().max() < 0.0015
    for one, other in ((numbers[:, :-1], numbers[:, 1:]), (numbers[:-1], numbers[1:])):
        assert torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1].abs() < 0.005


def count_shared(numbers: torch.Tensor) -> int:
    """How often two neighbouring numbers of a task are found again in another task. numbers: [T, count]."""
    bits = (numbers.double() * 2**23).long()
    pairs = ((bits[:, :-1] << 24) + bits[:, 1:]).flatten().sort().values
    return int((pairs[1:] == pairs[:-1]).sum())


def test_tasks_share_no_numbers_as_they_would_with_one_key() -> None:
    """4,000 tasks of 1,000 numbers: with one key of 32 bits about four pairs have overlapping ranges of the counter."""
    salts = draw_salts(4000)
    assert count_shared(hash_uniform(1000, salts.double()) / 2 + 0.5) > 500
    assert count_shared(vmap(lambda salt: draw_uniform(salt, 1000))(salts)) < 5


def test_overlapping_counters_and_other_purposes_give_other_numbers() -> None:
    low = 123456
    one, neighbour = (draw_uniform(torch.tensor((high << 32) + low + high - 5), 1000) for high in (5, 6))
    assert not torch.isin(one, neighbour).sum() > 5
    salt = torch.tensor((5 << 32) + low)
    assert torch.isin(draw_uniform(salt, 1000), draw_uniform(salt, 1000, purpose=1)).sum() < 5
