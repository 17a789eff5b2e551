"""Any of torchvision's image classifiers as a feature extractor, with or without its pre-trained weights."""

from dataclasses import dataclass

import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from metarun.config.errors import ConfigError, did_you_mean
from metarun.config.registry import register
from metarun.core.norm import BatchNorm
from metarun.core.types import Backbone

CLASSIFIERS = ("fc", "classifier", "head", "heads")  # what torchvision's networks call their last part
UNFIT = (  # random, or with second derivatives that are missing or wrong under vmap
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, StochasticDepth),
    *(nn.LayerNorm, nn.GroupNorm, nn.MultiheadAttention),
)


@register("backbone", "torchvision")
@dataclass(eq=False)
class TorchVision(Backbone):
    """A classifier of torchvision's without its last part; the features are what that would have read.

    Batch norm layers keep scale and shift, but not pre-trained running averages: statistics are those of the batch, or
    at meta-test of this run's training tasks, as with every backbone. Images of one channel are repeated to three;
    for pre-trained weights they are standardised as those expect (and only with them).
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
        self.network = self._built()
        mean, std = [0.0] * 3, [1.0] * 3
        if self.weights is not None:
            preset = torchvision.models.get_model_weights(self.model)[self.weights].transforms()
            mean, std = preset.mean, preset.std
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))
        self._adopt_norms()
        self.feature_size = self._measured()
        self.feature_shape = (self.feature_size,)

    def _built(self) -> nn.Module:
        """torchvision's network, without what makes classes of features. Raises ConfigError."""
        models = torchvision.models.list_models(module=torchvision.models)
        if self.model not in models:
            hint = did_you_mean(self.model, models) or ", as resnet18"
            raise ConfigError(f"backbone.model is {self.model!r}: it must be a classifier of torchvision's{hint}")
        offered = torchvision.models.get_model_weights(self.model).__members__
        if self.weights is not None and self.weights not in offered:
            raise ConfigError(f"backbone.weights is {self.weights!r}: choose from null, {', '.join(offered)}")
        try:
            network: nn.Module = torchvision.models.get_model(self.model, weights=self.weights)
        except (OSError, RuntimeError) as error:
            raise ConfigError(f"backbone.weights is {self.weights!r}: cannot be fetched ({error})") from error
        for name in CLASSIFIERS:
            if hasattr(network, name):
                setattr(network, name, nn.Identity())
        return network

    def _adopt_norms(self) -> None:
        """Batch norm of ours in place of torch's. Raises ConfigError where the network has other such layers."""
        for parent in list(self.network.modules()):
            if isinstance(parent, UNFIT):
                raise ConfigError(
                    f"backbone.model is {self.model!r}: its {type(parent).__name__} layers do not fit here; "
                    f"networks without dropout whose only norm is batch norm do, as resnet18"
                )
            for name, layer in parent.named_children():
                if isinstance(layer, nn.BatchNorm2d):
                    norm = BatchNorm(layer.num_features, eps=layer.eps)
                    norm.weight, norm.bias = layer.weight, layer.bias
                    setattr(parent, name, norm)

    @torch.no_grad()
    def _measured(self) -> int:
        """The number of features. Raises ConfigError where images are too small for the network."""
        try:
            return self(torch.zeros(2, *self.input_shape)).shape[1]
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
