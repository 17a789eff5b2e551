"""torchvision's networks as backbones: against the networks themselves. Stands in for the tests over all pairs."""

from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from metarun.config.errors import ConfigError
from metarun.config.registry import build
from metarun.core.batch import unstack
from metarun.core.inner import forward
from metarun.core.norm import use_statistics
from metarun.core.types import Backbone, Episode, Examples, Params
from metarun.engine.gradient import meta_gradient
from tests.reference.plain import loss
from tests.support.tiny import SIDE, WAYS, algo_and_theta, leaves


def own(model: str) -> nn.Module:
    """torchvision's network without its classifier, in float64."""
    network: nn.Module = torchvision.models.get_model(model, weights=None).double()
    network.fc = network.classifier = nn.Identity()
    return network


def by_their_names(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix("network."): p for name, p in weights.items()}


def backbone(model: str, weights: str | None = None, shape: tuple[int, ...] = (1, SIDE, SIDE)) -> Backbone:
    torch.manual_seed(0)
    values = {"name": "torchvision", "model": model, "weights": weights}
    network: Backbone = build("backbone", values, input_shape=shape).double()
    return network


@pytest.mark.parametrize("model", ["resnet18", "shufflenet_v2_x0_5", "mobilenet_v3_small"])
def test_features_are_those_of_the_network_itself(model: str) -> None:
    ours, x = backbone(model), torch.rand(6, 1, SIDE, SIDE, dtype=torch.float64)
    theirs, rgb = own(model), x.repeat(1, 3, 1, 1)
    weights = by_their_names(dict(ours.named_parameters()))
    assert weights.keys() == dict(theirs.named_parameters()).keys()
    theirs.load_state_dict({**theirs.state_dict(), **weights})
    features = theirs(rgb)
    assert features.shape == (6, ours.feature_size)
    torch.testing.assert_close(ours(x), features, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours(rgb), ours(x))

    statistics = {
        f"network.{name}.{which}": getattr(layer, f"running_{which}")
        for name, layer in theirs.named_modules()
        if isinstance(layer, nn.BatchNorm2d)
        for which in ("mean", "var")
    }
    use_statistics(ours, statistics)
    torch.testing.assert_close(ours(x), theirs.eval()(rgb), rtol=1e-9, atol=1e-9)


@pytest.mark.integration
def test_second_order_meta_gradient_equals_plain_autograd_through_the_network_itself() -> None:
    """MAML with one inner step, under vmap, against a loop with torchvision's own batch norm."""
    algo, theta = algo_and_theta("maml", "torchvision", inner_steps=1, inner_lr=0.05)
    network = own("resnet18")
    buffers = dict(network.named_buffers())

    def predict(body: Params, head: Params, x: torch.Tensor) -> torch.Tensor:
        z = forward(network, by_their_names(body | theta["norm"]) | buffers, x.expand(-1, 3, -1, -1))
        return z @ head["weight"].T + head["bias"]

    def task_loss(task: Episode) -> torch.Tensor:
        body, head = theta["backbone"], theta["head"]
        support = loss(predict(body, head, task.support.x), task.support.y)
        gradient = torch.autograd.grad(support, [*body.values(), *head.values()], create_graph=True)
        stepped = [p - algo.inner_lr * g for p, g in zip([*body.values(), *head.values()], gradient)]
        body, head = dict(zip(body, stepped)), dict(zip(head, stepped[len(body) :]))
        return loss(predict(body, head, task.query.x), task.query.y)

    images = torch.rand(2, 2, 12, 1, 32, 32, dtype=torch.float64)  # 16x16: last layers of one pixel
    y = torch.arange(WAYS).repeat(4).expand(2, -1)
    tasks = Episode(Examples(images[0], y), Examples(images[1], y))
    meta_loss, _, gradient = meta_gradient(algo, theta, tasks, execution="vmap")
    plain = torch.stack([task_loss(task) for task in unstack(tasks)])
    expected = torch.autograd.grad(plain.mean(), leaves(theta))
    torch.testing.assert_close(meta_loss, plain.detach().mean(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(leaves(gradient), list(expected), rtol=1e-9, atol=1e-12)


def test_pretrained_weights_are_torchvisions_and_images_standardised_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = torchvision.models.resnet18(weights=None)
    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", lambda *_, **__: kept.state_dict())
    ours, x = backbone("resnet18", "DEFAULT"), torch.rand(4, 3, SIDE, SIDE, dtype=torch.float64)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])  # of ImageNet
    kept.fc = nn.Identity()
    expected = kept.double()((x - mean.view(3, 1, 1)) / std.view(3, 1, 1))
    torch.testing.assert_close(ours(x), expected, rtol=1e-5, atol=1e-5)  # the three decimals were float32


def test_weights_of_a_file_are_those_that_training_starts_from(tmp_path: Path) -> None:
    """Of a classifier of seven classes, which have no place here."""
    kept = torchvision.models.shufflenet_v2_x0_5(num_classes=7)
    torch.save(kept.state_dict(), tmp_path / "kept.pth")
    ours, x = backbone("shufflenet_v2_x0_5", str(tmp_path / "kept.pth")), torch.rand(4, 3, SIDE, SIDE)
    kept.fc = nn.Identity()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])  # of torchvision's weights
    expected = kept((x - mean.view(3, 1, 1)) / std.view(3, 1, 1))
    torch.testing.assert_close(ours.float()(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("model", "weights", "shape", "message"),
    [
        ("resnet81", None, (3, 32, 32), "it must be a classifier of torchvision's (did you mean resnet18?)"),
        ("unheard", None, (3, 32, 32), "it must be a classifier of torchvision's, for example resnet18"),
        ("fcn_resnet50", None, (3, 32, 32), "it must be a classifier of torchvision's"),
        ("resnet18", "IMAGENET", (3, 32, 32), "weights is 'IMAGENET': choose from null, IMAGENET1K_V1, DEFAULT, or a"),
        ("resnet18", "/no/such.pth", (3, 32, 32), "backbone.weights: there is no file /no/such.pth with weights"),
        ("convnext_tiny", None, (3, 32, 32), "its LayerNorm2d layers do not work here"),
        ("efficientnet_b0", None, (3, 32, 32), "its StochasticDepth layers do not work here"),
        ("squeezenet1_1", None, (1, 16, 16), "images of 16x16 are too small for it"),
        ("resnet18", None, (1,), "takes images of 1 or 3 channels [C, H, W], and this dataset has inputs [1]"),
    ],
)
def test_what_does_not_fit_is_told_in_a_line(
    model: str, weights: str | None, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        backbone(model, weights, shape)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_weights_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", unreachable)
    with pytest.raises(ConfigError, match=r"weights is 'DEFAULT': cannot be fetched \(no route to host\)"):
        backbone("resnet18", "DEFAULT")
