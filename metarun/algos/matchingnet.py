"""Matching networks.

Vinyals, Blundell, Lillicrap, Kavukcuoglu, Wierstra, "Matching Networks for One Shot Learning", NeurIPS 2016,
https://arxiv.org/abs/1606.04080. There is no official code.

The paper's attention is `distance: cosine` with `scale: 1`. Since a cosine is at most 1, a softmax over it is nearly
flat and learns slowly; re-implementations multiply it (`scale`) or use the squared distance (`distance: l2`).
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.config.registry import register
from metarun.config.schema import Count, Norm, Positive
from metarun.config.traits import Traits
from metarun.core.inner import copy_weights, draw_networks, forward
from metarun.core.objectives import attend_to_support, episode_metrics, judge, one_hot
from metarun.core.recurrent import BiLSTM, LSTMCell, step_cell
from metarun.core.types import Attention, Backbone, Episode, Examples, Metrics, TaskSpec, Theta


class Support(NamedTuple):
    """What queries attend to: the embedded support g [n, D] and its labels y [n]."""

    g: Tensor
    y: Tensor


@register("algo", "matchingnet", Traits(kinds=("classification",)))
@dataclass(eq=False)
class MatchingNet:
    """Learn an embedding for labelling queries by attention over the support (Vinyals et al. 2016)."""

    distance: Literal["cosine", "l2"]
    scale: Positive
    fce: bool  # full context embeddings (section 2.1.2)
    processing_steps: Count  # K, steps of a query's context embedding
    norm: Norm
    backbone: Backbone
    spec: TaskSpec

    def __post_init__(self) -> None:
        self.contexts = self.build_contexts()  # templates

    def build_contexts(self) -> tuple[BiLSTM, LSTMCell]:
        """Build what embeds the support, and what embeds a query, in the context of the whole support."""
        size = self.backbone.feature_size
        return BiLSTM(size, size), LSTMCell(2 * size, size)

    def init(self) -> Theta:
        theta = draw_networks(self.backbone)
        if self.fce:
            for component, module in zip(("support_context", "query_context"), self.build_contexts()):
                theta[component] = copy_weights(module)
        return theta

    def embed(self, theta: Theta, x: Tensor) -> Tensor:
        """f' and g', one network as in the paper's experiments: x [n, *input] -> [n, D]."""
        return forward(self.backbone, (theta["backbone"], theta["norm"]), x)

    def support_embedding(self, theta: Theta, z: Tensor) -> Tensor:
        """g(x_i, S): the outputs of a bidirectional LSTM at g'(x_i), plus g'(x_i) (appendix A.2). [n, D] -> [n, D].

        The LSTM reads the support in the order of the episode, class after class.
        """
        if not self.fce:
            return z
        return forward(self.contexts[0], theta["support_context"], z).sum(0) + z

    def query_embedding(self, theta: Theta, g: Tensor, z: Tensor) -> Tensor:
        """f(x, S) = attLSTM(f'(x), g(S), K) (appendix A.1, Eqs. 3-6). g: [n, D], z = f'(x): [q, D] -> [q, D].

        LSTM(f', [h, r], c) is a cell with input [f', r] and state h. The paper leaves the start open: here the cell's
        output is zero at first, so h_0 = f'(x).
        """
        if not self.fce:
            return z
        output, c = torch.zeros_like(z), torch.zeros_like(z)
        for _ in range(self.processing_steps):
            h = output + z
            r = F.softmax(h @ g.T, dim=-1) @ g
            output, c = step_cell(self.contexts[1], theta["query_context"], torch.cat([z, r], dim=-1), (h, c))
        return output + z

    def similarities(self, g: Tensor, f: Tensor) -> Tensor:
        """Logits of the attention (section 2.1.1): [n, D], [q, D] -> [q, n]."""
        if self.distance == "l2":
            return -self.scale * (f[:, None] - g).square().sum(-1)
        return self.scale * F.normalize(f, dim=-1) @ F.normalize(g, dim=-1).T

    def log_attention(self, theta: Theta, phi: Support, z: Tensor) -> Tensor:
        """log a, a softmax over the support (section 2.1.1). z: [q, D] -> [q, n]."""
        return self.similarities(phi.g, self.query_embedding(theta, phi.g, z)).log_softmax(-1)

    def log_probabilities(self, theta: Theta, phi: Support, z: Tensor) -> Tensor:
        """log sum_i a(x, x_i) y_i (Eq. 1). z: [q, D] -> [q, N]."""
        members = one_hot(phi.y, self.spec.output_size)  # [n, N]
        return self.log_attention(theta, phi, z)[:, :, None].masked_fill(~members, -torch.inf).logsumexp(1)

    def adapt(self, theta: Theta, support: Examples) -> Support:
        """support.x: [n, *input], support.y: [n]."""
        return Support(self.support_embedding(theta, self.embed(theta, support.x)), support.y)

    def predict(self, theta: Theta, phi: Support, x: Tensor) -> Tensor:
        """x: [q, *input] -> log-probabilities [q, N]."""
        return self.log_probabilities(theta, phi, self.embed(theta, x))

    def task_loss(self, theta: Theta, episode: Episode) -> tuple[Tensor, Metrics]:
        """-log of the attention on the right class (Eq. 2). The network sees support and query as one batch."""
        support, query = episode
        z = self.embed(theta, torch.cat([support.x, query.x]))
        phi = Support(self.support_embedding(theta, z[: len(support.y)]), support.y)
        return judge(self.spec, self.log_probabilities(theta, phi, z[len(support.y) :]), query.y)

    def task_metrics(self, theta: Theta, episode: Episode) -> Metrics:
        return episode_metrics(self, self.spec, theta, episode)

    def attend(self, theta: Theta, episode: Episode) -> Attention:
        """Where queries look in the support."""

        def weigh(theta: Theta, phi: Support, x: Tensor) -> Tensor:
            return self.log_attention(theta, phi, self.embed(theta, x)).exp()[:, None]

        return attend_to_support(self, weigh, theta, episode)
