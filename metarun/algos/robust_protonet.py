"""Prototypical networks whose prototypes bear wrong labels in the support.

Liang, Rangrej, Petrovic, Hassner, "Few-shot Learning with Noisy Labels", CVPR 2022, https://arxiv.org/abs/2204.05494,
which has these beside its own method. They need three shots: of one or two shots both are the mean.

- median: of each feature, over the examples of the class.
- similarity: a weighted mean. The weights are the softmax of an example's mean cosine to the others of its class, times
  `sharpness`; the definition of the weights is from memory.

It has ProtoNet's theta: `eval.algo.name=robust_protonet` tests what ProtoNet trained.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.algos.protonet import ProtoNet
from metarun.config.registry import register
from metarun.config.schema import Norm, Positive
from metarun.config.traits import Traits
from metarun.core.objectives import one_hot
from metarun.core.types import Backbone, TaskSpec


@register("algo", "robust_protonet", Traits(kinds=("classification",), ragged=True))
@dataclass(frozen=True)
class RobustProtoNet(ProtoNet):
    """ProtoNet with medians, or means weighted by similarity, for prototypes (Liang et al. 2022)."""

    prototype: Literal["median", "similarity"]
    sharpness: Positive  # of the weights
    norm: Norm
    backbone: Backbone
    spec: TaskSpec

    def prototypes(self, z: Tensor, y: Tensor) -> Tensor:
        """z: [n, D], y: [n] -> [N, D]."""
        members = one_hot(y, self.spec.output_size)  # [n, N]
        return find_medians(z, members) if self.prototype == "median" else self.weigh(z, members).T @ z

    def weigh(self, z: Tensor, members: Tensor) -> Tensor:
        """The weight of each example in each class, 0 where it is no member: [n, N], of sum 1 over examples."""
        directions = F.normalize(z, dim=-1)
        cosines = (directions @ directions.T) * (1 - torch.eye(len(z), dtype=z.dtype, device=z.device))  # to others
        to_others = cosines @ members.to(z.dtype) / (members.sum(0) - 1).clamp(min=1)
        return (self.sharpness * to_others).masked_fill(~members, -torch.inf).softmax(0)


def find_medians(z: Tensor, members: Tensor) -> Tensor:
    """The median of each feature over the members of each class: [n, D], [n, N] -> [N, D]. Of an even number of members
    it is the mean of the middle two.
    """
    ascending = torch.where(members[..., None], z[:, None], torch.inf).sort(0).values  # [n, N, D], the members first
    last = members.sum(0) - 1  # [N]

    def pick(place: Tensor) -> Tensor:
        return ascending.gather(0, place[None, :, None].expand(1, -1, z.shape[1]))[0]

    return (pick(last // 2) + pick((last + 1) // 2)) / 2
