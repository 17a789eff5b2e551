"""The runner: the operator that MuJoCo stands behind, and what it pays."""

import importlib.util

import pytest
import torch
from torch import Tensor
from torch.func import vmap

from metarun.config.errors import ConfigError
from metarun.datasets import cheetah
from metarun.datasets.cheetah import JOINTS, STATE, Cheetah, run_cheetah
from metarun.testing import check_dataset

THERE = importlib.util.find_spec("mujoco") is not None
needs_mujoco = pytest.mark.skipif(not THERE, reason="needs metarun[mujoco]")


def draw(*size: int) -> tuple[Tensor, Tensor]:
    """States near the start, and torques."""
    generator = torch.Generator().manual_seed(0)
    state = 0.1 * torch.randn(*size, STATE, generator=generator, dtype=torch.float64)
    state[..., 0] = 0
    return state, torch.rand(*size, 6, generator=generator, dtype=torch.float64) * 2 - 1


@pytest.mark.integration  # for which MuJoCo is installed
@needs_mujoco
def test_it_fulfils_what_every_world_must() -> None:
    check_dataset("cheetah", "dataset.horizon=3")


@pytest.mark.integration  # for which MuJoCo is installed
@needs_mujoco
def test_many_tasks_at_once_are_a_loop_over_rows() -> None:
    state, torque = draw(3, 4)
    single = [[run_cheetah(s[None], a[None])[0] for s, a in zip(*rows)] for rows in zip(state, torque)]
    expected = torch.stack([torch.stack(rows) for rows in single])
    assert torch.equal(vmap(run_cheetah)(state, torque), expected)
    assert torch.equal(vmap(run_cheetah, in_dims=(1, None))(state, torque[0, :3]), vmap(run_cheetah)(
        state.transpose(0, 1), torque[0, :3].expand(4, 3, 6)
    ))  # fmt: skip


@pytest.mark.integration  # for which MuJoCo is installed
@needs_mujoco
def test_a_step_is_that_of_mujocos_own_loop() -> None:
    import mujoco

    _, model, _ = cheetah.load_model()
    state, torque = draw(1)
    data = mujoco.MjData(model)
    data.qpos[:], data.qvel[:] = state[0, 1 : 1 + JOINTS].numpy(), state[0, 1 + JOINTS :].numpy()
    data.ctrl[:] = torque[0].numpy()
    for _ in range(5):
        mujoco.mj_step(model, data)
    found = run_cheetah(state, torque)[0]
    torch.testing.assert_close(found[1 : 1 + JOINTS], torch.from_numpy(data.qpos.copy()), rtol=0, atol=1e-9)
    torch.testing.assert_close(found[1 + JOINTS :], torch.from_numpy(data.qvel.copy()), rtol=0, atol=1e-9)
    assert sum(model.body_mass) == pytest.approx(14)
    assert found[0] == pytest.approx(0.05)


@pytest.mark.integration  # for which MuJoCo is installed
@needs_mujoco
@pytest.mark.parametrize(("goal", "latent"), [("direction", -1.0), ("speed", 1.5)])
def test_the_reward_by_hand(goal: str, latent: float) -> None:
    world = Cheetah(goal, 3, torch.device("cpu"))  # type: ignore[arg-type]
    state, torque = draw(2)
    after, reward = world.step({"goal": torch.tensor(latent, dtype=torch.float64)}, state, 3 * torque, state[:, :0])
    for row in range(2):
        speed = float(after[row, 1] - state[row, 1]) / 0.05
        cost = 0.05 * sum(min(1.0, abs(3 * float(t))) ** 2 for t in torque[row])
        earned = -speed if goal == "direction" else -abs(speed - 1.5)
        assert float(reward[row]) == pytest.approx(earned - cost)


@pytest.mark.skipif(THERE, reason="MuJoCo is there")
def test_without_mujoco_it_says_what_to_install() -> None:
    with pytest.raises(ConfigError, match=r"dataset=cheetah needs a package .*pip install 'metarun\[mujoco\]'"):
        Cheetah("direction", 3, torch.device("cpu")).prepare()
