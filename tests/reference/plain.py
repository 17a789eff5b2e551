"""Networks, losses and inner steps in the plainest PyTorch there is, written out by hand.

Nothing of metarun's is used: no torch.func, no vmap, no module. `theta` and the episode are metarun's, and the
parameters' names are those of metarun/backbones.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Theta = dict[str, dict[str, Tensor]]
NGRAM_LENGTH = 1.5  # the tests' backbone.length


def maml_loss(
    backbone_name: str,
    theta: Theta,
    episode: Any,
    adapted: tuple[str, ...],
    *,
    inner_lr: float,
    inner_steps: int,
    first_order: bool,
) -> Tensor:
    """Query loss after gradient steps on the support's, in the components `adapted`."""
    support, query = episode
    phi = theta
    for _ in range(inner_steps):
        phi = inner_step(backbone_name, phi, support, adapted, inner_lr, first_order)
    return loss(predict(backbone_name, phi, query.x), query.y)


def inner_step(
    backbone_name: str,
    phi: Theta,
    support: Any,
    adapted: tuple[str, ...],
    lr: float | dict[str, Tensor],
    first_order: bool = False,
) -> Theta:
    """phi - lr * grad loss(phi; support), in the adapted components; the others stay. `lr` may differ by full name."""
    phi = {c: {n: p if p.requires_grad else p.clone().requires_grad_() for n, p in phi[c].items()} for c in phi}
    names = [(component, name) for component in adapted for name in phi[component]]
    weights = [phi[component][name] for component, name in names]
    support_loss = loss(predict(backbone_name, phi, support.x), support.y)
    gradient = torch.autograd.grad(support_loss, weights, create_graph=not first_order)
    stepped = {component: dict(params) for component, params in phi.items()}
    for (component, name), weight, g in zip(names, weights, gradient):
        rate = lr if isinstance(lr, float) else lr[f"{component}.{name}"]
        stepped[component][name] = weight - rate * g
    return stepped


def loss(prediction: Tensor, y: Tensor) -> Tensor:
    """Mean over the examples of -log softmax(logits)[y], or of the squared error where y is a real number."""
    if y.is_floating_point():
        return ((prediction - y) ** 2).mean()
    return torch.stack([row.logsumexp(0) - row[label] for row, label in zip(prediction, y)]).mean()


def predict(backbone_name: str, phi: Theta, x: Tensor) -> Tensor:
    return features(backbone_name, phi, x) @ phi["head"]["weight"].T + phi["head"]["bias"]


def features(backbone_name: str, phi: Theta, x: Tensor) -> Tensor:
    w = {**phi["backbone"], **phi["norm"]}
    networks = {
        "conv4": conv4,
        "conv4_flat": conv4_flat,
        "conv4_relation": conv4_relation,
        "conv4_strided": conv4_strided,
        "koch": koch,
        "mlp": mlp,
        "ngram": ngram,
        "r2d2": r2d2,
        "resnet12": resnet12,
        "tanh": tanh,
        "wide_deep": wide_deep,
    }
    return networks[backbone_name](w, x)


def conv4(w: dict[str, Tensor], x: Tensor) -> Tensor:
    """Convolution, batch norm, ReLU, 2x2 max-pool, four times; flattened."""
    for i in range(4):
        x = F.conv2d(x, w[f"convs.{i}.weight"], padding=1)
        x = batch_norm(x, w[f"norms.{i}.weight"], w[f"norms.{i}.bias"], eps=1e-5)
        x = F.max_pool2d(x.clamp(min=0), 2)
    return x.flatten(1)


def conv4_relation(w: dict[str, Tensor], x: Tensor) -> Tensor:
    """Two blocks without padding and with pooling, two with padding and without pooling; flattened."""
    for i in (0, 1):
        x = F.conv2d(x, w[f"convs.{i}.weight"])
        x = batch_norm(x, w[f"norms.{i}.weight"], w[f"norms.{i}.bias"], eps=1e-5)
        x = F.max_pool2d(x.clamp(min=0), 2)
    for i in (2, 3):
        x = F.conv2d(x, w[f"convs.{i}.weight"], padding=1)
        x = batch_norm(x, w[f"norms.{i}.weight"], w[f"norms.{i}.bias"], eps=1e-5).clamp(min=0)
    return x.flatten(1)


def wide_deep(w: dict[str, Tensor], x: Tensor) -> Tensor:
    """A linear map, and layers each with ReLU."""
    x = deep = x.flatten(1)
    for i in range(2):
        deep = F.relu(deep @ w[f"layers.{i}.weight"].T + w[f"layers.{i}.bias"])
    return torch.cat([x @ w["map.weight"].T, deep], 1)


def tanh(w: dict[str, Tensor], x: Tensor) -> Tensor:
    """Layers, each with tanh."""
    x = x.flatten(1)
    for i in range(2):
        x = torch.tanh(x @ w[f"layers.{i}.weight"].T + w[f"layers.{i}.bias"])
    return x


def koch(w: dict[str, Tensor], x: Tensor) -> Tensor:
    """Convolutions with ReLU, a pool after each but the last; a sigmoid layer."""
    for i in range(4):
        x = F.conv2d(x, w[f"convs.{i}.weight"], w[f"convs.{i}.bias"]).clamp(min=0)
        if i < 3:
            x = F.max_pool2d(x, 2)
    return 1 / (1 + (-(x.flatten(1) @ w["last.weight"].T + w["last.bias"])).exp())


def conv4_strided(w: dict[str, Tensor], x: Tensor) -> Tensor:
    """Convolution of stride 2, batch norm that shifts only, ReLU, four times; mean over space."""
    for i in range(4):
        x = F.conv2d(x, w[f"convs.{i}.weight"], stride=2, padding=1)
        shift = w[f"norms.{i}.bias"]
        x = batch_norm(x, torch.ones_like(shift), shift, eps=1e-3).clamp(min=0)
    return x.mean((2, 3))


def r2d2(w: dict[str, Tensor], x: Tensor) -> Tensor:
    """Convolution, batch norm, max-pool, leaky ReLU; the last two blocks, each pooled with stride 1, are joined."""

    def block(i: int, x: Tensor, stride: int) -> Tensor:
        x = F.conv2d(x, w[f"convs.{i}.weight"], padding=1)
        x = F.max_pool2d(batch_norm(x, w[f"norms.{i}.weight"], w[f"norms.{i}.bias"], eps=1e-5), 2, stride)
        return x.clamp(min=0) + 0.1 * x.clamp(max=0)

    third = block(2, block(1, block(0, x, 2), 2), 2)
    fourth = block(3, third, 1)
    return torch.cat([F.max_pool2d(third, 2, 1).flatten(1), fourth.flatten(1)], dim=1)


def conv4_flat(w: dict[str, Tensor], x: Tensor) -> Tensor:
    """Convolution of stride 2, batch norm, ReLU, four times; flattened."""
    for i in range(4):
        x = F.conv2d(x, w[f"convs.{i}.weight"], stride=2, padding=1)
        x = batch_norm(x, w[f"norms.{i}.weight"], w[f"norms.{i}.bias"], eps=1e-3).clamp(min=0)
    return x.flatten(1)


def mlp(w: dict[str, Tensor], x: Tensor) -> Tensor:
    """Linear layers with ReLU; with batch norm in place of the bias where `w` has norm layers."""
    x = x.flatten(1)
    for i in range(sum(name.startswith("layers.") and name.endswith(".weight") for name in w)):
        x = x @ w[f"layers.{i}.weight"].T
        if f"norms.{i}.weight" in w:
            x = batch_norm(x, w[f"norms.{i}.weight"], w[f"norms.{i}.bias"], eps=1e-5)
        else:
            x = x + w[f"layers.{i}.bias"]
        x = x.clamp(min=0)
    return x


def ngram(w: dict[str, Tensor], x: Tensor) -> Tensor:
    """For each row the sum of its n-grams' vectors, at a length of its own."""
    table = w["embedding.weight"]
    sums = [sum((table[int(h) % len(table)] for h in row if h > 0), torch.zeros_like(table[0])) for row in x]
    return torch.stack([NGRAM_LENGTH * z / (z @ z).sqrt() for z in sums])


def resnet12(w: dict[str, Tensor], x: Tensor) -> Tensor:
    """Four blocks of three convolutions and one of 1x1 beside them, each with batch norm; mean over space."""

    def convolved(x: Tensor, conv: str, norm: str, padding: int) -> Tensor:
        x = F.conv2d(x, w[f"{conv}.weight"], padding=padding)
        return batch_norm(x, w[f"{norm}.weight"], w[f"{norm}.bias"], eps=1e-5)

    def leaky(x: Tensor) -> Tensor:
        return x.clamp(min=0) + 0.1 * x.clamp(max=0)

    for i in range(4):
        block = f"blocks.{i}"
        shortcut = convolved(x, f"{block}.shortcut", f"{block}.shortcut_norm", padding=0)
        for j in range(3):
            x = convolved(x, f"{block}.convs.{j}", f"{block}.norms.{j}", padding=1)
            x = leaky(x if j < 2 else x + shortcut)
        x = F.max_pool2d(x, 2)
    return x.mean((2, 3))


def batch_norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """(x - mean) / sqrt(var + eps) * scale + shift, over the batch and space of x [n, C, *space]."""
    others = [dim for dim in range(x.dim()) if dim != 1]
    per_channel = [-1 if dim == 1 else 1 for dim in range(x.dim())]
    mean = x.mean(others, keepdim=True)
    var = ((x - mean) ** 2).mean(others, keepdim=True)
    return (x - mean) / (var + eps).sqrt() * scale.view(per_channel) + shift.view(per_channel)
