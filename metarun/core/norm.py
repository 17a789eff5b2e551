"""Batch normalisation that works under vmap and keeps no hidden state.

The affine part stays outside the fused operation: under vmap `F.batch_norm` with weight and bias returns wrong second
derivatives (https://github.com/pytorch/functorch/issues/534).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun.core.types import Params


class BatchNorm(nn.Module):
    """Normalise each channel of x [n, C, *space] by the statistics of this batch, or by given ones.

    Training always uses the batch's own statistics. For a test with running averages the evaluator gives those to its
    copy of the network (`use_statistics`).
    """

    mean: Tensor | None
    var: Tensor | None

    def __init__(self, channels: int, scale: bool = True, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels)) if scale else None
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps
        self.register_buffer("mean", None)
        self.register_buffer("var", None)
        self.seen: list[tuple[Tensor, Tensor]] | None = None  # statistics of each batch, while collecting

    def forward(self, x: Tensor) -> Tensor:
        per_channel = (-1,) + (1,) * (x.dim() - 2)
        if self.seen is not None:
            self.seen.append(measure_channels(x))
        if self.mean is None or self.var is None:
            x = F.batch_norm(x, None, None, training=True, eps=self.eps)
        else:
            scale = (self.var + self.eps).rsqrt()
            x = (x - self.mean.view(per_channel)) * scale.view(per_channel)
        if self.weight is not None:
            x = x * self.weight.view(per_channel)
        return x + self.bias.view(per_channel)


def norm_names(network: nn.Module) -> set[str]:
    """The names of the parameters of norm layers."""
    return {
        f"{prefix}.{name}"
        for prefix, layer in network.named_modules()
        if isinstance(layer, BatchNorm)
        for name, _ in layer.named_parameters()
    }


@torch.no_grad()
def collect_statistics(network: nn.Module, run: Callable[[], object]) -> Params:
    """Measure mean and variance of every norm layer's input over all batches that `run` sends through `network`, and
    those of the network's output, "centre" and "variance".

    These are averages over whole batches with the current weights, not moving averages over past weights (the
    "precise" batch norm of Wu & Johnson 2021, https://arxiv.org/abs/2105.07576). `run` must not use vmap.
    """
    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, BatchNorm)}
    for layer in layers.values():
        layer.seen = []
    outputs: list[tuple[Tensor, Tensor]] = []
    watch = network.register_forward_hook(lambda module, inputs, z: outputs.append(measure_channels(z)))
    try:
        run()
        statistics: Params = {}
        statistics["centre"], statistics["variance"] = join_batches(outputs)
        for name, layer in layers.items():
            statistics[f"{name}.mean"], statistics[f"{name}.var"] = join_batches(layer.seen or [])
        return statistics
    finally:
        watch.remove()
        for layer in layers.values():
            layer.seen = None


def measure_channels(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel of x [n, C, *space]: [C] each."""
    var, mean = torch.var_mean(x.transpose(0, 1).flatten(1), dim=1, correction=0)
    return mean, var


def join_batches(seen: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Mean and variance of batches of equal size together, from those of each."""
    means, variances = (torch.stack(each) for each in zip(*seen))
    return means.mean(0), variances.mean(0) + means.var(0, correction=0)


def use_statistics(network: nn.Module, statistics: Params) -> None:
    """Make the norm layers of `network` normalise by `statistics`, which `collect_statistics` returned, and give it its
    `centre` and `variance`.
    """
    for name, value in statistics.items():
        layer, _, which = name.rpartition(".")
        setattr(network.get_submodule(layer), which, value)
