"""Randomness as data: every generator is seeded by what it is for, so any step can be replayed alone."""

import hashlib

import torch
from torch import Tensor


def seed_for(*purpose: object) -> int:
    """Return a seed that follows from the purpose alone, for example from `(seed, "train", step)`."""
    digest = hashlib.blake2b(repr(purpose).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def generator_for(*purpose: object, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator that is seeded from the purpose alone."""
    return torch.Generator(device).manual_seed(seed_for(*purpose))


def hash_uniform(count: int, salt: Tensor) -> Tensor:
    """Return numbers [*s, count], uniform in -1..1, that the whole numbers `salt` [*s] alone determine.

    This is a generator without a state, for what is drawn inside a step: Wellons' hash of 32 bits
    (https://nullprogram.com/blog/2018/07/31/).
    """

    def mix(x: Tensor) -> Tensor:
        x = (x ^ (x >> 16)) * 0x7FEB352D & 0xFFFFFFFF
        x = (x ^ (x >> 15)) * 0x846CA68B & 0xFFFFFFFF
        return x ^ (x >> 16)

    numbered = torch.arange(count, device=salt.device) + mix(salt.long())[..., None]
    return mix(numbered & 0xFFFFFFFF).to(salt.dtype) / 2**31 - 1
