"""A recurrent network that reads a task label by label: the baseline of memory-augmented networks.

Santoro, Bartunov, Botvinick, Wierstra, Lillicrap, "Meta-Learning with Memory-Augmented Neural Networks", ICML 2016,
https://arxiv.org/abs/1605.06065, after Hochreiter, Younger, Conwell, "Learning to Learn Using Gradient Descent",
ICANN 2001. There is no official code.

At step t comes x_t with the label of step t - 1, and the label of x_t is asked for: so one forward pass learns the
task. The printed LSTM (62.5 % at the tenth instance) is weak: a re-implementation has 91.6.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metarun.config.registry import register
from metarun.config.schema import Count, Norm
from metarun.config.traits import Traits
from metarun.core.inner import copy_weights, draw_networks
from metarun.core.recurrent import LSTMCell, State
from metarun.core.sequences import Labels, Reading, read_next, read_support, sequence_loss, sequence_metrics
from metarun.core.types import Backbone, Episode, Examples, Metrics, TaskSpec, Theta


@register("algo", "lstm", Traits(kinds=("classification",), order="mixed", string_labels=True, sized=True))
@dataclass(eq=False)
class LSTM:
    """Learn a network that remembers in its hidden state which inputs had which label (Santoro et al. 2016)."""

    hidden: Count
    labels: Literal["one_hot", "strings"]
    norm: Norm
    backbone: Backbone
    spec: TaskSpec

    def __post_init__(self) -> None:
        self.networks = self.build_networks()

    @property
    def label(self) -> Labels:
        return Labels(self.spec.output_size, self.labels == "strings")

    def build_networks(self) -> dict[str, nn.Module]:
        controller = LSTMCell(self.backbone.feature_size + self.label.size, self.hidden)
        return {"controller": controller, "readout": nn.Linear(self.hidden, self.label.size)}

    def init(self) -> Theta:
        return draw_networks(self.backbone) | {
            name: copy_weights(network) for name, network in self.build_networks().items()
        }

    def embed(self, theta: Theta, x: Tensor) -> Tensor:
        """x: [n, *input] -> [n, D]."""
        return functional_call(self.backbone, (theta["backbone"], theta["norm"]), (x,))

    def start(self, z: Tensor) -> State:
        return z.new_zeros(self.hidden), z.new_zeros(self.hidden)

    def step(self, theta: Theta, state: State, z: Tensor, told: Tensor) -> tuple[State, Tensor]:
        """z: [..., D], told: [...] -> the new state, logits [..., N]."""
        inputs = torch.cat([z, self.label.vectors(told).to(z.dtype)], dim=-1)
        state = functional_call(self.networks["controller"], theta["controller"], (inputs, state))
        said = functional_call(self.networks["readout"], theta["readout"], (state[0],))
        return state, self.label.logits(said)

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
