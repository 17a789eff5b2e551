"""Memory-augmented neural networks with least recently used access (MANN, LRUA).

Santoro, Bartunov, Botvinick, Wierstra, Lillicrap, "Meta-Learning with Memory-Augmented Neural Networks", ICML 2016,
https://arxiv.org/abs/1605.06065. There is no official code.

The paper leaves details open. We follow a re-implementation (tristandeleu/ntm-one-shot) whose author reports the
paper's accuracies for five classes: a head writes a vector of its own, not its key; gates and vectors are computed from
the controller's state at each step, for each head; head i writes to the i-th least used row; memory is written first,
then read; the vectors read are an input of the controller's next step. Initially nothing was read, no row was used, and
the memory is 1e-6 everywhere. Cosines add 1e-12 to each squared length.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from metarun.config.errors import ConfigError
from metarun.config.registry import register
from metarun.config.schema import Count, Fraction, Norm
from metarun.config.traits import Traits
from metarun.core.inner import copy_weights, draw_networks, forward
from metarun.core.objectives import one_hot
from metarun.core.recurrent import LSTMCell, step_cell
from metarun.core.sequences import (
    Labels,
    Reading,
    follow,
    make_sequence,
    read_next,
    read_support,
    sequence_loss,
    sequence_metrics,
)
from metarun.core.types import Attention, Backbone, Episode, Examples, Metrics, TaskSpec, Theta

EMPTY, TINY = 1e-6, 1e-12


class State(NamedTuple):
    """What a step passes to the next; R heads, M rows of width W."""

    h: Tensor  # [..., hidden]
    c: Tensor  # [..., hidden]
    memory: Tensor  # [..., M, W]
    reads: Tensor  # [..., R, M], where each head read: w^r
    usage: Tensor  # [..., M]: w^u
    r: Tensor  # [..., R * W], what the heads read


def least_used(usage: Tensor, heads: int) -> Tensor:
    """w^lu (Eq. 6): [..., M] -> [..., R, M], with a one at the i-th least used row for head i."""
    return one_hot(usage.argsort(dim=-1, stable=True)[..., :heads], usage.shape[-1]).to(usage.dtype)


def write(memory: Tensor, weights: Tensor, vectors: Tensor, least: Tensor) -> Tensor:
    """Zero the least used row, then add each head's vector [..., R, W] with its weights [..., R, M] (Eq. 8)."""
    return memory * (1 - least[..., 0, :, None]) + weights.transpose(-2, -1) @ vectors


def address(memory: Tensor, keys: Tensor) -> Tensor:
    """w^r, a softmax of cosines (Eqs. 2 and 3): [..., M, W], [..., R, W] -> [..., R, M]."""
    keys, memory = (v * (v.square().sum(-1, keepdim=True) + TINY).rsqrt() for v in (keys, memory))
    return (keys @ memory.transpose(-2, -1)).softmax(-1)


@register("algo", "mann", Traits(kinds=("classification",), order="mixed", string_labels=True, sized=True))
@dataclass(eq=False)
class MANN:
    """Learn to write to the least used row of a memory and to read by content (Santoro et al. 2016)."""

    hidden: Count  # units of the controller
    rows: Count  # of the memory
    width: Count  # of the memory
    heads: Count  # each reads and writes
    decay: Fraction  # gamma, of usage
    labels: Literal["one_hot", "strings"]
    norm: Norm
    backbone: Backbone
    spec: TaskSpec

    def __post_init__(self) -> None:
        if self.heads > self.rows:
            raise ConfigError(
                f"algo.heads is {self.heads}: at most algo.rows={self.rows}, since each writes to its own row"
            )
        self.networks = self.build_networks()  # templates

    @property
    def label(self) -> Labels:
        return Labels(self.spec.output_size, self.labels == "strings")

    def build_networks(self) -> dict[str, nn.Module]:
        """Controller, classifier ("readout"), and "heads": keys, vectors and gates from the controller's state."""
        read = self.heads * self.width
        heads = nn.Linear(self.hidden, self.heads * (2 * self.width + 1))
        readout = nn.Linear(self.hidden + read, self.label.size)
        for layer in (heads, readout):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        controller = LSTMCell(self.backbone.feature_size + self.label.size + read, self.hidden)
        return {"controller": controller, "heads": heads, "readout": readout}

    def init(self) -> Theta:
        return draw_networks(self.backbone) | {
            name: copy_weights(network) for name, network in self.build_networks().items()
        }

    def embed(self, theta: Theta, x: Tensor) -> Tensor:
        """x: [n, *input] -> [n, D]."""
        return forward(self.backbone, (theta["backbone"], theta["norm"]), x)

    def start(self, z: Tensor) -> State:
        return State(
            h=z.new_zeros(self.hidden),
            c=z.new_zeros(self.hidden),
            memory=z.new_full((self.rows, self.width), EMPTY),
            reads=z.new_zeros(self.heads, self.rows),
            usage=z.new_zeros(self.rows),
            r=z.new_zeros(self.heads * self.width),
        )

    def step(self, theta: Theta, state: State, z: Tensor, previous: Tensor) -> tuple[State, Tensor]:
        """z: [..., D], previous: [...], the label of the step before -> the new state, logits [..., N]."""
        inputs = torch.cat(
            [z, self.label.encode(previous).to(z.dtype), state.r.expand(*z.shape[:-1], -1)],
            dim=-1,
        )
        h, c = step_cell(self.networks["controller"], theta["controller"], inputs, (state.h, state.c))
        heads = forward(self.networks["heads"], theta["heads"], h).unflatten(-1, (self.heads, -1))
        keys, vectors, gate = heads.split([self.width, self.width, 1], dim=-1)  # [..., R, W] twice, [..., R, 1]
        least, gate = least_used(state.usage, self.heads), gate.sigmoid()
        writes = gate * state.reads + (1 - gate) * least  # w^w (Eq. 7)
        memory = write(state.memory, writes, vectors.tanh(), least)
        reads = address(memory, keys.tanh())
        usage = self.decay * state.usage + (reads + writes).sum(-2).detach()  # Eq. 5; only its order is used
        r = (reads @ memory).flatten(-2)  # Eq. 4
        output = forward(self.networks["readout"], theta["readout"], torch.cat([h, r], dim=-1))
        return State(h, c, memory, reads, usage, r), self.label.logits(output)

    def adapt(self, theta: Theta, support: Examples) -> Reading:
        """support.x: [n, *input], support.y: [n], in the order in which they are read."""
        return read_support(self, theta, support)

    def predict(self, theta: Theta, phi: Reading, x: Tensor) -> Tensor:
        """x: [n, *input] -> logits [n, N]."""
        return read_next(self, theta, phi, x)

    def task_loss(self, theta: Theta, episode: Episode) -> tuple[Tensor, Metrics]:
        """Cross-entropy of all steps (section 4.2)."""
        return sequence_loss(self, theta, episode)

    def task_metrics(self, theta: Theta, episode: Episode) -> Metrics:
        return sequence_metrics(self, theta, episode)

    def attend(self, theta: Theta, episode: Episode) -> Attention:
        """Where each head reads the memory, step by step; with `norm: per_query` in the steps of the support alone."""
        steps = make_sequence(*episode[: 1 if self.norm == "per_query" else 2])
        reads = [state.reads for state, _ in follow(self, theta, steps)]
        return Attention(torch.stack(reads), steps.y, seen=None)
