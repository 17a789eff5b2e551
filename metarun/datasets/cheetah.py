"""HalfCheetah: a runner in the plane that has to run in a hidden direction, or at a hidden speed, simulated by MuJoCo.

MuJoCo computes on the CPU, one row after another, and its steps have no gradient here. Needs metarun[mujoco].
"""

import importlib
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

from metarun.config.errors import ConfigError
from metarun.config.registry import register
from metarun.config.schema import Count
from metarun.config.traits import DatasetTraits
from metarun.core.batch import batch_rows
from metarun.core.control import Reflex
from metarun.core.types import Agent, Params
from metarun.datasets.sampling.trials import Simulated

JOINTS = 9  # x, z and pitch of the torso, and six that are driven
STATE = 1 + 2 * JOINTS  # time, places, speeds
SKIP, TIMESTEP = 5, 0.01  # simulated steps of an action, seconds of each
MASS = 14.0  # kg, of the whole
FASTEST = 2.0  # of the speeds to be found, in m/s
COST = 0.05  # of the squared torques
NOISE = 0.1  # of the start

# The masses, springs and shapes of Gymnasium's HalfCheetah-v5 (MIT licence), without what only its pictures need.
MODEL = """
<mujoco model="cheetah">
  <compiler angle="radian" inertiafromgeom="true"/>
  <default>
    <joint type="hinge" axis="0 1 0" armature=".1" damping=".01" limited="true" stiffness="8" solimplimit="0 .8 .03"
           solreflimit=".02 1"/>
    <geom type="capsule" conaffinity="0" condim="3" contype="1" friction=".4 .1 .1" solimp="0 .8 .01" solref=".02 1"/>
    <motor ctrllimited="true" ctrlrange="-1 1"/>
    <default class="free"><joint armature="0" damping="0" limited="false" stiffness="0"/></default>
  </default>
  <option gravity="0 0 -9.81" timestep="0.01"/>
  <worldbody>
    <geom type="plane" name="floor" conaffinity="1" size="40 40 40"/>
    <body name="torso" pos="0 0 .7">
      <joint class="free" name="rootx" type="slide" axis="1 0 0"/>
      <joint class="free" name="rootz" type="slide" axis="0 0 1"/>
      <joint class="free" name="rooty"/>
      <geom fromto="-.5 0 0 .5 0 0" size=".046"/>
      <geom axisangle="0 1 0 .87" pos=".6 0 .1" size=".046 .15"/>
      <body pos="-.5 0 0">
        <joint name="bthigh" damping="6" range="-.52 1.05" stiffness="240"/>
        <geom axisangle="0 1 0 -3.8" pos=".1 0 -.13" size=".046 .145"/>
        <body pos=".16 0 -.25">
          <joint name="bshin" damping="4.5" range="-.785 .785" stiffness="180"/>
          <geom axisangle="0 1 0 -2.03" pos="-.14 0 -.07" size=".046 .15"/>
          <body pos="-.28 0 -.14">
            <joint name="bfoot" damping="3" range="-.4 .785" stiffness="120"/>
            <geom axisangle="0 1 0 -.27" pos=".03 0 -.097" size=".046 .094"/>
          </body>
        </body>
      </body>
      <body pos=".5 0 0">
        <joint name="fthigh" damping="4.5" range="-1 .7" stiffness="180"/>
        <geom axisangle="0 1 0 .52" pos="-.07 0 -.12" size=".046 .133"/>
        <body pos="-.14 0 -.24">
          <joint name="fshin" damping="3" range="-1.2 .87" stiffness="120"/>
          <geom axisangle="0 1 0 -.6" pos=".065 0 -.09" size=".046 .106"/>
          <body pos=".13 0 -.18">
            <joint name="ffoot" damping="1.5" range="-.5 .5" stiffness="60"/>
            <geom axisangle="0 1 0 -.6" pos=".045 0 -.07" size=".046 .07"/>
          </body>
        </body>
      </body>
    </body>
  </worldbody>
  <actuator>
    <motor gear="120" joint="bthigh"/> <motor gear="90" joint="bshin"/> <motor gear="60" joint="bfoot"/>
    <motor gear="120" joint="fthigh"/> <motor gear="60" joint="fshin"/> <motor gear="30" joint="ffoot"/>
  </actuator>
</mujoco>
"""


@cache
def load_model() -> tuple[Any, Any, Any]:
    """MuJoCo's function for rollouts, the model, and memory to simulate it in. Raises ConfigError if it is missing."""
    try:
        mujoco, rollout = importlib.import_module("mujoco"), importlib.import_module("mujoco.rollout")
    except ImportError as error:
        raise ConfigError(
            f"dataset=cheetah needs a package that is not there ({error}): pip install 'metarun[mujoco]'"
        ) from error
    model = mujoco.MjModel.from_xml_string(MODEL)
    mujoco.mj_setTotalmass(model, MASS)
    data = mujoco.MjData(model)
    mujoco.mj_setConst(model, data)
    return rollout.rollout, model, data


@torch.library.custom_op("metarun::run_cheetah", mutates_args=())
def run_cheetah(state: Tensor, torque: Tensor) -> Tensor:
    """The states after an action: [n, STATE], [n, 6] within -1..1 -> [n, STATE]. Rows know nothing of each other."""
    rollout, model, data = load_model()
    begin, drive = state.detach().cpu().double().numpy(), torque.detach().cpu().double().numpy()
    states, _ = rollout(model, data, begin, drive[:, None].repeat(SKIP, 1))
    return torch.from_numpy(states[:, -1].copy()).to(state)


@run_cheetah.register_fake
def _(state: Tensor, torque: Tensor) -> Tensor:
    return torch.empty_like(state)


batch_rows(run_cheetah)


@register("dataset", "cheetah", DatasetTraits(kind="control", rules=("still",)))
@dataclass(frozen=True)
class Cheetah(Simulated):
    """A runner with a hidden goal: a direction, whose reward is the speed in it, or a speed up to 2 m/s, whose reward
    is minus the distance from it (after Finn et al. 2017, section 5.3), both less a cost of torques.

    The model is not the authors' of 2017, so returns cannot be compared with theirs.
    """

    goal: Literal["direction", "speed"]
    horizon: Count
    device: torch.device

    observed = 2 * JOINTS - 1
    actions = 6
    discrete = False
    chances = 2 * JOINTS

    def prepare(self) -> None:
        """Load MuJoCo. Raises ConfigError if it is missing."""
        load_model()

    def latent(self, tasks: int, generator: torch.Generator) -> Params:
        """The goal [T]: -1 or 1, or a speed."""
        drawn = torch.rand(tasks, generator=generator, device=generator.device)
        return {"goal": FASTEST * drawn if self.goal == "speed" else torch.where(drawn < 0.5, -1.0, 1.0)}

    def reset(self, latent: Params, chance: Tensor) -> Tensor:
        """[P, STATE]: at rest, nearly."""
        places, speeds = (chance * 2 - 1)[:, :JOINTS], torch.special.ndtri(chance[:, JOINTS:])
        return torch.cat([torch.zeros_like(places[:, :1]), NOISE * places, NOISE * speeds], -1)

    def observe(self, latent: Params, state: Tensor) -> Tensor:
        """All but the time and the distance."""
        return state[:, 2:]

    def step(self, latent: Params, state: Tensor, action: Tensor, chance: Tensor) -> tuple[Tensor, Tensor]:
        torque = action.clamp(-1, 1)
        after = run_cheetah(state, torque)
        speed = (after[:, 1] - state[:, 1]) / (SKIP * TIMESTEP)
        reward = -(speed - latent["goal"]).abs() if self.goal == "speed" else speed * latent["goal"]
        return after, reward - COST * torque.square().sum(-1)

    def rule(self, name: str, latent: Params, episodes: int) -> Agent:
        """No torques."""
        return Reflex(lambda observation, chance: torch.zeros_like(observation[:, :6]))
