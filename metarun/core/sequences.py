"""A task as a sequence of examples, each of which comes with the label of the one before (Santoro et al. 2016).

Shared by the methods that read a task step by step: the sequence, labels as vectors, and accuracy by instance.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from metarun.core.objectives import episode_metrics, headline_metric, loss, measure, one_hot
from metarun.core.types import Episode, Examples, FewShotAlgorithm, Metrics, TaskSpec, Theta

NOTHING = -1  # the label that comes with the first example
LETTERS, LENGTH = 5, 5  # string labels (Santoro et al. 2016, section 4.2) have five letters, each from a to e
STRINGS = LETTERS**LENGTH


class Sequence(NamedTuple):
    """A task, step by step."""

    x: Tensor  # [n, *input]
    previous: Tensor  # [n], the label of the step before, which comes with x
    y: Tensor  # [n], the label to predict
    instance: Tensor  # [n], how many examples of its class have come so far, this one included


def make_sequence(*parts: Examples) -> Sequence:
    """Join the parts in their order, which was drawn with the task."""
    x, y = (torch.cat(fields) for fields in zip(*parts))
    previous = torch.cat([torch.full_like(y[:1], NOTHING), y[:-1]])
    return Sequence(x, previous, y, (y[:, None] == y).tril().sum(1))


@dataclass(frozen=True)
class Labels:
    """The form of labels at a network's input and output: one of the classes, or a string of letters."""

    classes: int
    strings: bool

    @property
    def size(self) -> int:
        return LENGTH * LETTERS if self.strings else self.classes

    def encode(self, y: Tensor) -> Tensor:
        """[...] -> [..., size], with a one at the label or at each of its letters; NOTHING is all zeros."""
        if not self.strings:
            return one_hot(y, self.classes)
        return (one_hot(letters(y), LETTERS) & (y != NOTHING)[..., None, None]).flatten(-2)

    def logits(self, output: Tensor) -> Tensor:
        """[..., size] -> [..., classes]. A string's logit is the sum of its letters' log-probabilities."""
        if not self.strings:
            return output
        by_letter = output.unflatten(-1, (LENGTH, LETTERS)).log_softmax(-1).flatten(-2)
        strings = self.encode(torch.arange(STRINGS, device=output.device)).to(output.dtype)  # [classes, size]
        logits: Tensor = by_letter @ strings.T
        return logits


class Reader(FewShotAlgorithm, Protocol):
    """An algorithm that reads a task step by step."""

    @property
    def spec(self) -> TaskSpec: ...

    def embed(self, theta: Theta, x: Tensor) -> Tensor:
        """x: [n, *input] -> [n, D]."""
        ...

    def start(self, z: Tensor) -> Any:
        """The state before the first step, a tuple of tensors; z: [D], the features of that step."""
        ...

    def step(self, theta: Theta, state: Any, z: Tensor, previous: Tensor) -> tuple[Any, Tensor]:
        """z: [..., D], previous: [...], the label of the step before -> the new state, logits [..., N]."""
        ...


class Reading(NamedTuple):
    """The phi of a reader: its state after the support, and the last label, which comes with the next step."""

    state: Any
    previous: Tensor


def follow(algo: Reader, theta: Theta, steps: Sequence) -> Iterator[tuple[Any, Tensor]]:
    """Read the sequence: after each step the state, and the logits [N] from before that step's own label is known."""
    z = algo.embed(theta, steps.x)
    state = algo.start(z[0])
    for z_t, previous in zip(z, steps.previous):
        state, output = algo.step(theta, state, z_t, previous)
        yield state, output


def read(algo: Reader, theta: Theta, steps: Sequence) -> tuple[Tensor, Any]:
    """Read the sequence: logits [n, N], and the state at the end."""
    end, logits = None, []
    for state, output in follow(algo, theta, steps):
        end = state
        logits.append(output)
    return torch.stack(logits), end


def read_support(algo: Reader, theta: Theta, support: Examples) -> Reading:
    """Read the support. x: [n, *input], y: [n], in the order in which they are read."""
    return Reading(read(algo, theta, make_sequence(support))[1], support.y[-1])


def read_next(algo: Reader, theta: Theta, phi: Reading, x: Tensor) -> Tensor:
    """Read each query [n, *input] as the next step after the support, without the others: logits [n, N]."""
    z = algo.embed(theta, x)
    return algo.step(theta, phi.state, z, phi.previous.expand(len(z)))[1]


def sequence_loss(algo: Reader, theta: Theta, episode: Episode) -> tuple[Tensor, Metrics]:
    """The mean loss over all steps, those of the support and of the queries."""
    steps = make_sequence(*episode)
    logits, _ = read(algo, theta, steps)
    return loss(algo.spec.kind, logits, steps.y), measure_by_instance(
        algo.spec, logits.detach(), steps, len(episode.support.y)
    )


def sequence_metrics(algo: Reader, theta: Theta, episode: Episode) -> Metrics:
    """Metrics of all steps; with `norm: per_query`, of each query as the next step after the support."""
    if algo.norm == "per_query":
        return episode_metrics(algo, algo.spec, theta, episode)
    steps = make_sequence(*episode)
    return measure_by_instance(algo.spec, read(algo, theta, steps)[0], steps, len(episode.support.y))


def measure_by_instance(spec: TaskSpec, logits: Tensor, steps: Sequence, support: int) -> Metrics:
    """Accuracy by instance of a class [K + Q]; its headline is that of instance K + 1, which is K-shot accuracy.

    `support` is the number of steps N * K. With another metric than accuracy: that metric over the steps after it.
    """
    if headline_metric(spec) != "accuracy":
        return measure(spec, logits[support:], steps.y[support:])
    ways = spec.ways or spec.output_size
    right = (logits.argmax(-1) == steps.y).to(logits.dtype)
    members = one_hot(steps.instance - 1, len(steps.y) // ways).to(logits.dtype)  # [n, K + Q]
    by_instance = right @ members / members.sum(0).clamp(min=1)
    return {"accuracy": by_instance[support // ways], "accuracy_by_instance": by_instance}


def letters(strings: Tensor) -> Tensor:
    """[...] numbers below STRINGS -> [..., LENGTH], the letters of each, from 0 to LETTERS - 1."""
    places = LETTERS ** torch.arange(LENGTH, device=strings.device)
    return strings[..., None].div(places, rounding_mode="floor") % LETTERS
