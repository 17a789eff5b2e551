"""torchvision's image classifiers without their last part: what a backbone and an encoder of this name share."""

import torchvision
from torch import nn

from metarun.config.errors import ConfigError, did_you_mean

LAST = ("fc", "classifier", "head", "heads")  # names of the last part in torchvision's networks


def check_model(key: str, model: str) -> None:
    """Raise ConfigError if torchvision has no classifier of this name; key: the setting that names it."""
    models = torchvision.models.list_models(module=torchvision.models)
    if model not in models:
        hint = did_you_mean(model, models) or ", for example resnet18"
        raise ConfigError(f"{key} is {model!r}: it must be a classifier of torchvision's{hint}")


def drop_last(network: nn.Module) -> nn.Module:
    """Replace the last part by the identity."""
    for name in LAST:
        if hasattr(network, name):
            setattr(network, name, nn.Identity())
    return network
