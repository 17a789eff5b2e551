"""Where the context enters: the paper's concatenation and FiLM, written out, are what the linear maps compute."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from metarun.cli.compose import compose
from metarun.config.errors import ConfigError
from metarun.config.load import load_settings, resolve
from metarun.config.registry import build
from metarun.core.types import Backbone, Examples, TaskSpec
from metarun.engine.build import Experiment, build_few_shot
from tests.reference.cavia import SETTINGS
from tests.reference.plain import batch_norm
from tests.support.tiny import algo_and_theta


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def test_on_a_plain_mlp_the_context_is_concatenated_to_the_input() -> None:
    spec = TaskSpec("regression", (2,), 1)
    network = build("backbone", {"name": "mlp", "hidden": [4], "batch_norm": False}, input_shape=(2,)).double()
    algo = build_few_shot({"name": "cavia", **SETTINGS}, network, spec)
    first, last = (randn(4, 2 + 3), randn(4)), (randn(1, 4), randn(1))  # weights and biases; inputs are [x; phi]
    theta = {
        "backbone": {"layers.0.weight": first[0][:, :2], "layers.0.bias": first[1]},
        "norm": {},
        "head": {"weight": last[0], "bias": last[1]},
        "context": {"layers.0.bias": first[0][:, 2:]},
    }
    assert {c: set(params) for c, params in algo.init().items()} == {c: set(params) for c, params in theta.items()}
    x, phi = randn(7, 2), randn(3)
    expected = F.linear(F.linear(torch.cat([x, phi.expand(7, 3)], dim=1), *first).relu(), *last)
    torch.testing.assert_close(algo.predict(theta, {"context": {"phi": phi}}, x), expected)


def test_on_convolutions_the_context_is_film_in_the_third_block() -> None:
    """The authors' block: convolution, batch norm, pool, gamma(phi) h + beta(phi), ReLU; here with gamma > 0."""
    algo, theta = algo_and_theta("cavia", "conv4")
    w, phi = theta["backbone"] | theta["norm"], randn(3)
    (a, a0), (b, b0) = (randn(4, 3), 5 + randn(4).abs()), (randn(4, 3), randn(4))  # gamma = a phi + a0, likewise
    gamma, beta = a @ phi + a0, b @ phi + b0
    assert (gamma > 0).all()
    x = h = randn(6, 1, 16, 16)
    for i in range(4):
        h = F.conv2d(h, w[f"convs.{i}.weight"], padding=1)
        h = F.max_pool2d(batch_norm(h, w[f"norms.{i}.weight"], w[f"norms.{i}.bias"], eps=1e-5), 2)
        h = (gamma.view(1, -1, 1, 1) * h + beta.view(1, -1, 1, 1) if i == 2 else h).relu()
    expected = functional_call(algo.head, theta["head"], (h.flatten(1),))

    scale, shift = w["norms.2.weight"], w["norms.2.bias"]
    theta["norm"] = theta["norm"] | {"norms.2.weight": a0 * scale, "norms.2.bias": a0 * shift + b0}
    theta["context"] = {"norms.2.weight": scale[:, None] * a, "norms.2.bias": shift[:, None] * a + b}
    torch.testing.assert_close(algo.predict(theta, {"context": {"phi": phi}}, x), expected)


def test_only_the_context_is_adapted_by_the_gradient_of_the_support_loss() -> None:
    """phi_1 = -alpha dL/dphi at 0, by finite differences."""
    algo, theta = algo_and_theta("cavia", "mlp", kind="regression", inner_steps=1)
    x, y = randn(5, 1), randn(6, 1)[:5]
    step, slopes = 1e-6, []
    for direction in torch.eye(3, dtype=torch.float64):
        ahead, behind = (
            (algo.predict(theta, {"context": {"phi": sign * step * direction}}, x) - y).square().mean()
            for sign in (1, -1)
        )
        slopes.append((ahead - behind) / (2 * step))
    adapted = algo.adapt(theta, Examples(x, y))
    assert {c: list(params) for c, params in adapted.items()} == {"context": ["phi"]}
    torch.testing.assert_close(adapted["context"]["phi"], -algo.inner_lr * torch.stack(slopes), rtol=1e-6, atol=1e-8)


def test_the_maps_are_drawn_from_the_seed(place: Path) -> None:
    def maps(seed: int) -> dict[str, Tensor]:
        experiment = Experiment.build(
            load_settings(resolve(compose(["algo=cavia", "dataset=sinusoid", f"seed={seed}"])))
        )
        torch.rand(seed + 1)  # what else was drawn in this process does not matter
        return experiment.draw_theta()["context"]

    torch.testing.assert_close(maps(0), maps(0), rtol=0, atol=0)
    assert not torch.equal(maps(0)["layers.0.bias"], maps(1)["layers.0.bias"])
    assert 0.9 < maps(0)["layers.0.bias"].abs().max() <= 1


def test_a_backbone_without_a_place_for_a_context_is_refused() -> None:
    class Bare(Backbone):
        feature_size = 3

    message = "algo=cavia finds no place for a context in the backbone Bare: choose another, for example conv4"
    with pytest.raises(ConfigError, match=f"^{message}$"):
        build_few_shot({"name": "cavia", **SETTINGS}, Bare(), TaskSpec("classification", (3,), 2))
