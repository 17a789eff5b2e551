"""A task as a sequence: one example after another, each with the label of the one before (Santoro et al. 2016).

What methods share that read a task so, step by step: the sequence, labels as vectors, and figures by instance.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from metarun.core.objectives import episode_metrics, headline, loss, metric_of, one_hot
from metarun.core.types import Algorithm, Episode, Examples, Metrics, TaskSpec, Theta

NOTHING = -1  # the label that comes with the first example


class Sequence(NamedTuple):
    """A task laid out, step by step."""

    x: Tensor  # [n, *input]
    told: Tensor  # [n], the label of the step before: what x comes with
    y: Tensor  # [n], what is asked for
    instance: Tensor  # [n], how many of its class have come by now: 1 where it is met for the first time


def sequence(*parts: Examples) -> Sequence:
    """The parts one after another, in the order they are in: that was drawn with the task."""
    x, y = (torch.cat(fields) for fields in zip(*parts))
    told = torch.cat([torch.full_like(y[:1], NOTHING), y[:-1]])
    return Sequence(x, told, y, (y[:, None] == y).tril().sum(1))


@dataclass(frozen=True)
class Labels:
    """How a network is told a label and says one: as one of the classes, or as a string, letter by letter."""

    classes: int
    strings: bool

    @property
    def size(self) -> int:
        return LENGTH * LETTERS if self.strings else self.classes

    def vectors(self, y: Tensor) -> Tensor:
        """[...] -> [..., size], a one at the label or at each of its letters; NOTHING is all zeros."""
        if not self.strings:
            return one_hot(y, self.classes)
        return (one_hot(letters(y), LETTERS) & (y != NOTHING)[..., None, None]).flatten(-2)

    def logits(self, said: Tensor) -> Tensor:
        """[..., size] -> [..., classes]. A string's is its log-probability, the sum of its letters'."""
        if not self.strings:
            return said
        by_letter = said.unflatten(-1, (LENGTH, LETTERS)).log_softmax(-1).flatten(-2)
        return by_letter @ self.vectors(torch.arange(STRINGS, device=said.device)).to(said.dtype).T


class Reader(Algorithm, Protocol):
    """An algorithm that reads a task step by step."""

    @property
    def spec(self) -> TaskSpec: ...

    def embed(self, theta: Theta, x: Tensor) -> Tensor:
        """x: [n, *input] -> [n, D]."""
        ...

    def start(self, z: Tensor) -> Any:
        """The state before the first step, z [D] being what that will read: a tuple of tensors."""
        ...

    def step(self, theta: Theta, state: Any, z: Tensor, told: Tensor) -> tuple[Any, Tensor]:
        """z: [..., D], told: [...], the label of the step before -> the new state, logits [..., N]."""
        ...


class Reading(NamedTuple):
    """The phi of a reader: its state after the support, and the last label, which the next step will tell it."""

    state: Any
    told: Tensor


def read(algo: Reader, theta: Theta, steps: Sequence) -> tuple[Tensor, Any]:
    """Logits [n, N], each before the step's own label is told, and the state at the end."""
    z = algo.embed(theta, steps.x)
    state, logits = algo.start(z[0]), []
    for z_t, told in zip(z, steps.told):
        state, said = algo.step(theta, state, z_t, told)
        logits.append(said)
    return torch.stack(logits), state


def read_support(algo: Reader, theta: Theta, support: Examples) -> Reading:
    return Reading(read(algo, theta, sequence(support))[1], support.y[-1])


def read_next(algo: Reader, theta: Theta, phi: Reading, x: Tensor) -> Tensor:
    """Logits [n, N] of queries [n, *input], each as the next step after the support: none sees the others."""
    z = algo.embed(theta, x)
    return algo.step(theta, phi.state, z, phi.told.expand(len(z)))[1]


def sequence_loss(algo: Reader, theta: Theta, episode: Episode) -> tuple[Tensor, Metrics]:
    """The loss of all steps, of support and queries alike."""
    steps = sequence(*episode)
    logits, _ = read(algo, theta, steps)
    return loss(algo.spec.kind, logits, steps.y), figures(algo.spec, logits.detach(), steps, len(episode.support.y))


def sequence_metrics(algo: Reader, theta: Theta, episode: Episode) -> Metrics:
    """As in training; but where queries are to be predicted one by one, each as the next step after the support."""
    if algo.norm == "per_query":
        return episode_metrics(algo, algo.spec, theta, episode)
    steps = sequence(*episode)
    return figures(algo.spec, read(algo, theta, steps)[0], steps, len(episode.support.y))


def figures(spec: TaskSpec, logits: Tensor, steps: Sequence, support: int) -> Metrics:
    """Accuracy by instance of a class, [K + Q], and as the headline that of instance K + 1: K-shot accuracy.

    `support` is the size N * K. Where tasks are judged by something else, it is that of the steps after the support.
    """
    if metric_of(spec) != "accuracy":
        return headline(spec, logits[support:], steps.y[support:])
    ways = spec.ways or spec.output_size
    right = (logits.argmax(-1) == steps.y).to(logits.dtype)
    members = one_hot(steps.instance - 1, len(steps.y) // ways).to(logits.dtype)  # [n, K + Q]
    by_instance = right @ members / members.sum(0).clamp(min=1)
    return {"accuracy": by_instance[support // ways], "accuracy_by_instance": by_instance}


LETTERS, LENGTH = 5, 5  # of string labels (Santoro et al. 2016, section 4.2): a to e, five of them


STRINGS = LETTERS**LENGTH


def letters(strings: Tensor) -> Tensor:
    """[...] numbers below STRINGS -> [..., LENGTH], the letters of each, 0 to LETTERS - 1."""
    places = LETTERS ** torch.arange(LENGTH, device=strings.device)
    return strings[..., None].div(places, rounding_mode="floor") % LETTERS
