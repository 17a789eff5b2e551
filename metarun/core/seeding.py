"""Randomness as data: every generator is seeded by what it is for, so any step can be replayed alone."""

import hashlib
import math

import torch
from torch import Tensor

SALTS = 2**62  # salts of `draw_uniform` are whole numbers below this


def seed_for(*purpose: object) -> int:
    """Return a seed that follows from the purpose alone, for example from `(seed, "train", step)`."""
    digest = hashlib.blake2b(repr(purpose).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def generator_for(*purpose: object, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator that is seeded from the purpose alone."""
    return torch.Generator(device).manual_seed(seed_for(*purpose))


def mix(x: Tensor) -> Tensor:
    """Wellons' hash of whole numbers of 32 bits (https://nullprogram.com/blog/2018/07/31/)."""
    x = (x ^ (x >> 16)) * 0x7FEB352D & 0xFFFFFFFF
    x = (x ^ (x >> 15)) * 0x846CA68B & 0xFFFFFFFF
    return x ^ (x >> 16)


def hash_uniform(count: int, salt: Tensor) -> Tensor:
    """Return numbers [*s, count], uniform in -1..1, that the whole numbers `salt` [*s] alone determine.

    This is a generator without a state, for what is drawn inside a step.
    """
    numbered = torch.arange(count, device=salt.device) + mix(salt.long())[..., None]
    return mix(numbered & 0xFFFFFFFF).to(salt.dtype) / 2**31 - 1


def draw_uniform(salt: Tensor, *size: int, purpose: int = 0, dtype: torch.dtype | None = None) -> Tensor:
    """Return numbers [*size], uniform in 0..1 without both ends, that `salt` [] below SALTS and `purpose` determine.

    Tasks draw tens of thousands of numbers each. With one key of 32 bits, as in `hash_uniform`, some of thousands of
    tasks would draw from overlapping ranges of the counter; the second key makes other numbers of the same range.
    """
    counter = torch.arange(math.prod(size), device=salt.device).reshape(size)
    once = mix((counter + (salt & 0xFFFFFFFF)) & 0xFFFFFFFF)
    twice = mix(once ^ mix((salt >> 32) ^ (purpose * 0x9E3779B9 & 0xFFFFFFFF)))
    return ((twice >> 9) + 0.5).to(dtype or torch.get_default_dtype()) / 2**23  # 24 bits: exact in float32
