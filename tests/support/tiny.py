"""Small algorithms and episodes in float64 that the numerical tests share."""

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from metarun.config.registry import build, declaration, known, traits_of
from metarun.config.traits import Kind
from metarun.core.batch import unstack
from metarun.core.inner import draw_theta
from metarun.core.types import Episode, Examples, FewShotAlgorithm, TaskSpec, Theta
from metarun.engine.build import build_few_shot
from tests.reference.plain import NGRAM_LENGTH

BACKBONES: dict[str, dict[str, Any]] = {
    "conv4": {"filters": 4},
    "conv4_relation": {"filters": 4},
    "conv4_strided": {"filters": 4},
    "koch": {"filters": 2, "kernels": [3, 2, 2, 1], "units": 6},
    "conv4_flat": {"filters": 4},
    "linear": {},
    "mlp": {"hidden": [6, 5], "batch_norm": True},
    "ngram": {"buckets": 11, "features": 4, "length": NGRAM_LENGTH},
    "r2d2": {"filters": [3, 2, 4, 3]},
    "resnet12": {"filters": [3, 4, 4, 5], "drop_rate": 0.0, "drop_size": 5},
    "tanh": {"hidden": [6, 5]},
    "wide_deep": {"wide": 3, "hidden": [6, 5]},
    "torchvision": {"model": "resnet18", "weights": None},
}
UNPAIRED = ("torchvision", "linear")  # too slow with every algorithm: tests/backbones, and mlp, stand in
FEW_SHOT = [name for name in known("algo") if "control" not in declaration("algo", name).traits.kinds]
REFERENCES: dict[str, ModuleType] = {
    name: import_module(f"tests.reference.{name}")
    for name in FEW_SHOT
    if find_spec(f"tests.reference.{name}") is not None
}
PAIRS = [
    (name, backbone)
    for name, module in REFERENCES.items()
    for backbone in getattr(module, "BACKBONES", BACKBONES)
    if backbone not in UNPAIRED
]
ONE_BACKBONE = [  # for each algorithm, the quickest; and one that convolves
    *((name, backbone) for name, backbone in PAIRS if backbone == "mlp" or (name, "mlp") not in PAIRS),
    ("maml", "conv4_strided"),
]
WAYS, SHOTS, QUERIES, SIDE = 3, 2, 2, 16


def build_algo(name: str, backbone: str, kind: Kind = "classification", **changes: Any) -> FewShotAlgorithm:
    """A registered algorithm on a registered backbone; one without a module in tests/reference is an error."""
    shape = (1,) if kind == "regression" else (SIDE,) if backbone == "ngram" else (1, SIDE, SIDE)
    spec = TaskSpec(kind, shape, WAYS if kind == "classification" else 1)
    network = build("backbone", {"name": backbone, **BACKBONES[backbone]}, input_shape=shape).double()
    return build_few_shot({"name": name, **REFERENCES[name].SETTINGS, **changes}, network, spec)


def algo_and_theta(name: str, backbone: str, kind: Kind = "classification", **changes: Any) -> tuple[Any, Theta]:
    """The same, with meta-parameters that noise has moved away from where training starts."""
    algo = build_algo(name, backbone, kind, **changes)
    noise = torch.Generator().manual_seed(1)

    def perturb(component: str, p: Tensor) -> Tensor:
        change = 0.3 * torch.randn(p.shape, generator=noise, dtype=torch.float64)
        if component in traits_of(algo).carried:  # single numbers there are counts, all others never negative
            change = change.abs() if p.dim() else torch.tensor(2.0, dtype=torch.float64)
        return (p.double() + change).requires_grad_()

    theta = {c: {key: perturb(c, p) for key, p in params.items()} for c, params in draw_theta(algo, 0).items()}
    return algo, theta


def episodes(tasks: int, kind: Kind = "classification", seed: int = 0, backbone: str = "conv4") -> Episode:
    """[T, ...] random images, or what else the backbone reads, with labels; or random points."""
    generator = torch.Generator().manual_seed(seed)

    def part(per_class: int) -> Examples:
        n = WAYS * per_class
        if kind == "regression":
            return Examples(*(torch.randn(tasks, n, 1, generator=generator, dtype=torch.float64) for _ in range(2)))
        if backbone == "ngram":  # many rows have less than SIDE
            x = torch.randint(2**31, (tasks, n, SIDE), generator=generator, dtype=torch.int32)
            x = x * torch.randint(2, x.shape, generator=generator, dtype=torch.int32)
        else:
            x = torch.rand(tasks, n, 1, SIDE, SIDE, generator=generator, dtype=torch.float64)
        return Examples(x, torch.arange(WAYS).repeat_interleave(per_class).expand(tasks, -1))

    return Episode(part(SHOTS), part(QUERIES))


def plain_losses(name: str, backbone: str, theta: Theta, tasks: Episode, **changes: Any) -> Tensor:
    """[T], by the algorithm's slow and obvious form."""
    reference = REFERENCES[name]
    settings = {key: value for key, value in {**reference.SETTINGS, **changes}.items() if key != "norm"}
    return torch.stack([reference.plain_loss(backbone, theta, task, **settings) for task in unstack(tasks)])


def leaves(theta: Theta) -> list[Tensor]:
    return [p for params in theta.values() for p in params.values()]


def learns(name: str, kind: Kind) -> bool:
    """Whether the algorithm can learn tasks of that kind."""
    return kind in declaration("algo", name).traits.kinds


def has_first_order(name: str) -> bool:
    return "first_order" in declaration("algo", name).settings


def nearest_by_pixels(tasks: Episode) -> Tensor:
    """[T], the accuracy where each query has the label of the support image whose pixels are nearest."""
    nearest = torch.cdist(tasks.query.x.flatten(2), tasks.support.x.flatten(2)).argmin(-1)  # [T, N*Q]
    return (tasks.support.y.gather(1, nearest) == tasks.query.y).double().mean(1)
