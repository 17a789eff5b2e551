"""Steps of a training of each method, on a CPU or a GPU, to be recorded as CUDA graphs."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_map

from metarun.config.registry import traits_of
from metarun.config.schema import TrainerSettings
from metarun.core.types import Algorithm, Metrics, Task, Theta
from metarun.engine.capture import WARM_UP, Captured
from metarun.engine.loop import Descent, Step, descend, set_rates
from metarun.engine.optimizers import move_rates
from metarun.engine.plan import MetaGradient
from metarun.engine.state import State

STEPS = WARM_UP + 3


def make_settings(**changes: Any) -> TrainerSettings:
    """Of a training of one step, on one process."""
    values: dict[str, Any] = {
        "steps": 1,
        "tasks_per_step": 1,
        "tasks_per_chunk": None,
        "execution": "vmap",
        "workers": 1,
        "compile": False,
        "cuda_graph": True,
        "precision": "float32",
        "channels_last": False,
        "clip_norm": None,
        "clip_value": None,
        "log_every": 1,
        "eval_every": 1,
        "patience": None,
        "keep_best": 1,
    }
    return TrainerSettings(**{**values, **changes})


def build_step(
    algo: Algorithm,
    theta: Theta,
    meta_gradient: MetaGradient,
    capture_descent: Callable[[Descent, State], Descent] = lambda descent, state: descent,
) -> tuple[State, Step]:
    """A state, and the step of a training: by an Adam whose rate a graph can read."""
    theta = {c: {n: p.detach().clone().requires_grad_() for n, p in params.items()} for c, params in theta.items()}
    carried = traits_of(algo).carried
    learned = [p for c, params in theta.items() if c not in carried for p in params.values()]
    optimizer = torch.optim.Adam(learned, lr=1e-2)
    optimizer.param_groups[0]["initial_lr"] = 1e-2
    move_rates(optimizer, learned[0].device)

    def descent(gradient: Theta) -> None:
        descend(theta, gradient, optimizer, meta_gradient.settings, carried)

    state = State(theta, optimizer)
    follow = capture_descent(descent, state)

    def step(tasks: Task) -> Metrics:
        loss, metrics, gradient = meta_gradient(theta, tasks)
        follow(gradient)
        return {"loss": loss, **metrics}

    return state, step


def change(tasks: Task, number: int) -> Any:
    """Other inputs of the same shapes: numbers shuffled among the tasks, and a little moved."""
    generator = torch.Generator().manual_seed(number)

    def one(x: torch.Tensor) -> torch.Tensor:
        if not x.is_floating_point():
            return x
        moved = x + 0.1 * torch.rand(x.shape, generator=generator, dtype=torch.float64).to(x)
        return moved[torch.randperm(len(x), generator=generator).to(x.device)]

    return tree_map(one, tasks)


def train(state: State, step: Step, tasks: Task) -> list[Metrics]:
    """Take some steps, each with another rate and other tasks."""
    found = []
    for number in range(STEPS):
        set_rates(state.optimizer, 1 / (1 + number))
        found.append({name: mean.clone() for name, mean in step(change(tasks, number)).items()})
    return found


def is_recorded(captured: Captured[Any]) -> bool:
    return bool(captured.programs) and captured.function not in captured.programs.values()
