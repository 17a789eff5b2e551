"""Any image classifier of torchvision as a feature extractor, with or without pre-trained weights."""

from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from metarun.config.errors import ConfigError
from metarun.config.registry import register
from metarun.config.traits import BackboneTraits
from metarun.core.classifiers import LAST, check_model, drop_last
from metarun.core.norm import BatchNorm
from metarun.core.types import Backbone
from metarun.core.weight_files import fill

FILES = (".pth", ".pt", ".safetensors")  # ends of a file's name; torchvision's names of weights have no point
UNFIT = (  # random, or second derivatives are missing or wrong under vmap
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, StochasticDepth),
    *(nn.LayerNorm, nn.GroupNorm, nn.MultiheadAttention),
)


@register("backbone", "torchvision", BackboneTraits(pictures=True))
@dataclass(eq=False)
class TorchVision(Backbone):
    """A classifier of torchvision without its last part; the features are that part's inputs.

    Batch norm layers keep scale and shift, but not pre-trained running averages: as in every backbone, statistics are
    those of the batch or, at meta-test, of this run's training tasks. An image of one channel is repeated to three
    channels. With pre-trained weights images are standardised as those weights expect, with those of a
    file as torchvision's own.
    """

    model: str
    weights: str | None
    input_shape: tuple[int, ...]

    def __post_init__(self) -> None:
        super().__init__()
        if len(self.input_shape) != 3 or self.input_shape[0] not in (1, 3):
            raise ConfigError(
                f"backbone=torchvision takes images of 1 or 3 channels [C, H, W], and this dataset has inputs "
                f"{list(self.input_shape)}: choose another backbone (mlp takes any input)"
            )
        self.network = self._build_network()
        mean, std = [0.0] * 3, [1.0] * 3
        if self.weights is not None:
            offered = torchvision.models.get_model_weights(self.model)
            preset = offered["DEFAULT" if self.weights.endswith(FILES) else self.weights].transforms()
            mean, std = preset.mean, preset.std
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))
        self._adopt_norms()
        self.feature_size = self._count_features()
        self.feature_shape = (self.feature_size,)

    def _build_network(self) -> nn.Module:
        """Build torchvision's network without its last part. Raises ConfigError."""
        check_model("backbone.model", self.model)
        offered = torchvision.models.get_model_weights(self.model).__members__
        file = Path(self.weights) if self.weights and self.weights.endswith(FILES) else None
        if self.weights is not None and file is None and self.weights not in offered:
            raise ConfigError(
                f"backbone.weights is {self.weights!r}: choose from null, {', '.join(offered)}, "
                f"or a file of weights ({', '.join(FILES)})"
            )
        try:
            network: nn.Module = torchvision.models.get_model(self.model, weights=None if file else self.weights)
        except (OSError, RuntimeError) as error:
            raise ConfigError(f"backbone.weights is {self.weights!r}: cannot be fetched ({error})") from error
        drop_last(network)
        if file:
            fill(network, "backbone.weights", file, self.model, without=LAST)
        return network

    def _adopt_norms(self) -> None:
        """Replace torch's batch norm by ours. Raises ConfigError if the network has layers that do not work here."""
        for parent in list(self.network.modules()):
            if isinstance(parent, UNFIT):
                raise ConfigError(
                    f"backbone.model is {self.model!r}: its {type(parent).__name__} layers do not work here; choose a "
                    f"network without dropout whose only norm is batch norm, for example resnet18"
                )
            for name, layer in parent.named_children():
                if isinstance(layer, nn.BatchNorm2d):
                    norm = BatchNorm(layer.num_features, eps=layer.eps)
                    norm.weight, norm.bias = layer.weight, layer.bias
                    setattr(parent, name, norm)

    @torch.no_grad()
    def _count_features(self) -> int:
        """Count the features of an image. Raises ConfigError if images are too small for the network."""
        try:
            features: Tensor = self(torch.zeros(2, *self.input_shape))
            return features.shape[1]
        except (RuntimeError, ValueError) as error:
            height, width = self.input_shape[1:]
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"backbone.model is {self.model!r}: images of {height}x{width} are too small for it ({reason})"
            ) from error

    def forward(self, x: Tensor) -> Tensor:
        """x: [n, C, H, W] in 0..1 -> [n, feature_size]."""
        x = (x.expand(-1, 3, -1, -1) - self.get_buffer("mean")) / self.get_buffer("std")
        features: Tensor = self.network(x)
        return features.flatten(1)
