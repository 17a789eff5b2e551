"""The inner loop against derivations by hand."""

import pytest
import torch
from torch import Tensor

from metarun.config.registry import build
from metarun.core.inner import descend_by_adam, draw_networks, inner_step, last, unroll
from metarun.core.types import Params


def test_meta_gradient_of_a_quadratic_matches_the_hand_derivation() -> None:
    """L(w) = a/2 (w - c)^2. One step gives w' = w - lr a (w - c), so
    d/dw a/2 (w' - d)^2 = a (w' - d) (1 - lr a); first order drops the last factor."""
    w, a, c, d, lr = 1.5, 2.0, 0.25, -1.0, 0.1
    stepped = w - lr * a * (w - c)
    for first_order, factor in [(False, 1 - lr * a), (True, 1.0)]:
        theta = {"net": {"w": torch.tensor(w, dtype=torch.float64, requires_grad=True)}}
        states = unroll(lambda phi: a / 2 * (phi["net"]["w"] - c) ** 2, theta, lr=lr, steps=1, first_order=first_order)
        phi = last(states)
        assert phi["net"]["w"].item() == pytest.approx(stepped, abs=1e-12)
        (gradient,) = torch.autograd.grad(a / 2 * (phi["net"]["w"] - d) ** 2, theta["net"]["w"])
        assert gradient.item() == pytest.approx(a * (stepped - d) * factor, abs=1e-12)


def test_each_parameter_has_the_rate_of_its_full_name_and_a_tensor_decides_on_the_order() -> None:
    """L = (a^2 + b^2) / 2 and then q = a + 2 b: dq/da_0 = 1 - lr_a, dq/db_0 = 2 (1 - lr_b), dq/dlr = -a_0, -2 b_0;
    the first order has 1 and 2 for the initial values, and the same for the rates."""
    for first_order, keeps in [(False, 1.0), (True, 0.0)]:
        a, b, lr_a, lr_b = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (3.0, -1.0, 0.1, 0.4))
        phi = inner_step(
            lambda phi: (phi["x"]["w"] ** 2 + phi["y"]["w"] ** 2) / 2,
            {"x": {"w": a}, "y": {"w": b}},
            lr={"x.w": lr_a, "y.w": lr_b},
            first_order=torch.tensor(first_order),
        )
        assert (phi["x"]["w"].item(), phi["y"]["w"].item()) == pytest.approx((2.7, -0.6))
        gradient = torch.autograd.grad(phi["x"]["w"] + 2 * phi["y"]["w"], (a, b, lr_a, lr_b))
        assert [g.item() for g in gradient] == pytest.approx([1 - 0.1 * keeps, 2 * (1 - 0.4 * keeps), -3.0, 2.0])


def test_a_quadratic_contracts_by_a_known_factor_at_every_step() -> None:
    """w_j - c = (1 - lr a)^j (w_0 - c)."""
    phi = {"net": {"w": torch.tensor(3.0, dtype=torch.float64)}}
    states = list(unroll(lambda phi: 2.0 * (phi["net"]["w"] - 1) ** 2, phi, lr=0.05, steps=4))
    assert [state["net"]["w"].item() for state in states] == pytest.approx([1 + 0.8**j * 2 for j in range(5)])


def test_steps_of_adam_are_pytorchs() -> None:
    w = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    b = torch.tensor(0.3, dtype=torch.float64)

    def loss(phi: Params) -> Tensor:
        return ((phi["w"] - 3).square() * phi["w"].new_tensor([1.0, 5.0, 0.0])).sum() * phi["b"].exp()

    found = descend_by_adam(loss, {"w": w, "b": b}, lr=0.1, steps=7)
    params = {"w": w.clone().requires_grad_(), "b": b.clone().requires_grad_()}
    optimizer = torch.optim.Adam(params.values(), lr=0.1)
    for _ in range(7):
        optimizer.zero_grad()
        loss(params).backward()
        optimizer.step()
    for name, p in params.items():
        torch.testing.assert_close(found[name], p.detach(), rtol=1e-9, atol=0)


def test_zero_steps_leave_the_initialisation() -> None:
    phi = {"net": {"w": torch.tensor(3.0)}}
    assert last(unroll(lambda phi: phi["net"]["w"] ** 2, phi, lr=0.1, steps=0)) is phi


def test_theta_holds_every_weight_once_and_norm_layers_apart() -> None:
    backbone = build("backbone", {"name": "conv4", "filters": 3}, input_shape=(1, 16, 16))
    theta = draw_networks(backbone, backbone.head(5))
    assert set(theta) == {"backbone", "norm", "head"}
    assert set(theta["norm"]) == {f"norms.{i}.{name}" for i in range(4) for name in ("weight", "bias")}
    assert set(theta["backbone"]) | set(theta["norm"]) == {name for name, _ in backbone.named_parameters()}
    assert theta["head"]["weight"].shape == (5, backbone.feature_size)
