"""Bandits and their chances, pull by pull, in Python's whole numbers and exact sums."""

from collections.abc import Iterator
from functools import cache


def wellons(x: int) -> int:
    """https://nullprogram.com/blog/2018/07/31/, the hash "prospector" of 32 bits."""
    x ^= x >> 16
    x = x * 0x7FEB352D % 2**32
    x ^= x >> 15
    x = x * 0x846CA68B % 2**32
    return x ^ (x >> 16)


def uniform_numbers(salt: int, purpose: int = 0) -> Iterator[float]:
    """The numbers of a salt, one after another."""
    low, high = salt % 2**32, salt >> 32
    key, counter = wellons(high ^ (purpose * 0x9E3779B9 % 2**32)), 0
    while True:
        once = wellons((counter + low) % 2**32)
        yield ((wellons(once ^ key) >> 9) + 0.5) / 2**23
        counter += 1


Arm = tuple[int, int]  # how often it has paid, and how often not


def mean(arm: Arm) -> float:
    """The mean of what it pays, where all probabilities were equally likely."""
    paid, blank = arm
    return (paid + 1) / (paid + blank + 2)


def pulled(arms: tuple[Arm, ...], i: int, pays: int) -> tuple[Arm, ...]:
    paid, blank = arms[i]
    return tuple(sorted([*arms[:i], (paid + pays, blank + 1 - pays), *arms[i + 1 :]]))


@cache
def optimal_return(arms: tuple[Arm, ...], pulls: int) -> float:
    """What the best play of so many pulls earns, by dynamic programming. Arms are sorted: their order is nothing."""
    if pulls == 0:
        return 0.0
    return max(
        mean(arms[i]) * (1 + optimal_return(pulled(arms, i, 1), pulls - 1))
        + (1 - mean(arms[i])) * optimal_return(pulled(arms, i, 0), pulls - 1)
        for i in range(len(arms))
        if i == 0 or arms[i] != arms[i - 1]
    )


@cache
def worth(arm: Arm, pulls: int, sure: float) -> float:
    """What one more pull of an arm, and the best play after it, earns above a sure payment; stopping is for good."""
    if pulls == 0:
        return 0.0
    p, (paid, blank) = mean(arm), arm
    after = [worth((paid + 1, blank), pulls - 1, sure), worth((paid, blank + 1), pulls - 1, sure)]
    return p - sure + p * max(0.0, after[0]) + (1 - p) * max(0.0, after[1])


def gittins_index(arm: Arm, pulls: int) -> float:
    """The sure payment at which one more pull is worth nothing, by bisection."""
    low, high = 0.0, 1.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if worth(arm, pulls, middle) > 0 else (low, middle)
    return low
