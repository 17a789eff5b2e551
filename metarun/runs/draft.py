"""The scores of a test that is not finished: what a stopped one goes on from, bit-equal to one that never stopped."""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.utils._pytree import tree_leaves

from metarun.config.errors import ConfigError
from metarun.core.machine import device_name, find_versions
from metarun.engine import checkpoint
from metarun.engine.evaluate import NOTHING, Keep, Model, Scores, Tester
from metarun.engine.plan import Plan


@dataclass(frozen=True)
class Draft:
    """The file with the scores of a row so far."""

    path: Path
    key: str  # a hash of everything that the scores depend on

    def read(self) -> tuple[Scores, float]:
        """Return the scores so far and the seconds they took: none from a damaged file or one of another test."""
        try:
            tensors, facts = checkpoint.load(self.path)
        except ConfigError:  # missing too
            return NOTHING, 0.0
        if facts.get("key") != self.key:
            return NOTHING, 0.0
        return Scores(tensors["per_task"], tuple(map(bytes.fromhex, facts["prints"]))), facts["seconds"]

    def follow(self, started: float) -> Keep:
        """Return what writes the scores of a test that started at this time, by `time.perf_counter`."""

        def write(scores: Scores) -> None:
            seconds, prints = time.perf_counter() - started, [part.hex() for part in scores.prints]
            facts = {"key": self.key, "prints": prints, "seconds": seconds}
            checkpoint.save(self.path, {"per_task": scores.per_task}, facts)

        return write


def make_key(
    tester: Tester, models: Sequence[Model], plan: Plan, device: torch.device, twice: bool, answers: int
) -> str:
    """Hash the models, the settings of the row, the data, what executes the test, whether it reads twice, and how many
    answers it keeps.
    """
    machine = device_name(device), find_versions()
    asked = [asdict(tester.row), tester.dataset.identity(), plan.execution, machine, twice, answers]
    digest = hashlib.sha256(json.dumps(asked, default=str).encode())
    for tensor in tree_leaves(models):
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
