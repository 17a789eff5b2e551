"""Randomness as data: every generator is seeded by what it is for, so any step can be replayed alone."""

import hashlib

import torch


def seed_for(*purpose: object) -> int:
    """From the purpose alone, for example `(seed, "train", step)`."""
    digest = hashlib.blake2b(repr(purpose).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def generator_for(*purpose: object, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator seeded from the purpose alone."""
    return torch.Generator(device).manual_seed(seed_for(*purpose))
