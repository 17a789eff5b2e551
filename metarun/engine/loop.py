"""The loop: meta-training of every method, and the only place that knows about many tasks and steps."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from metarun.config.schema import TrainerSettings
from metarun.core.types import Metrics, Task, Theta
from metarun.engine.distributed import ALONE, Ranks
from metarun.engine.state import Log, NonFiniteLoss, Progress, State
from metarun.engine.stop import catch_signals

Step = Callable[[Task], Metrics]  # one outer step on these tasks, in place; returns the means to log
Descent = Callable[[Theta], object]  # its second half: takes the gradient
T = TypeVar("T")


def run_eagerly(part: T) -> T:
    """The part of a step as it is."""
    return part


def train(
    state: State,
    tasks_of: Callable[[int], Task],
    meta_gradient: Callable[[Theta, Task], tuple[Tensor, Metrics, Theta]],
    schedule: Callable[[int], float],
    settings: TrainerSettings,
    *,
    validate: Callable[[], tuple[float, dict[str, Any]]],
    save: Callable[[str], None],
    log: Log,
    carried: tuple[str, ...] = (),
    capture: Callable[[Step], Step] = run_eagerly,
    capture_descent: Callable[[Descent], Descent] = run_eagerly,
    ranks: Ranks = ALONE,
) -> None:
    """Descend the mean task loss in `state.theta`, in place, from `state.progress.step` to `settings.steps`.

    `tasks_of` draws the tasks of a step from the step's own seed, so a resumed run is bit-equal to one that never
    stopped. `validate` returns a score (more is better) and what to log. `save` writes the checkpoints "last", "best"
    and, of the `keep_best` best validations, "best-STEP". `capture` and `capture_descent` may replace the step, or its
    second half, by a faster form of itself. Raises NonFiniteLoss.
    """
    theta, optimizer, progress, window = state.theta, state.optimizer, state.progress, state.window

    @capture_descent
    def follow(gradient: Theta) -> None:
        descend(theta, gradient, optimizer, settings, carried)

    @capture
    def take_step(tasks: Task) -> Metrics:
        loss, metrics, gradient = meta_gradient(theta, tasks)
        follow(gradient)
        return {"loss": loss, **metrics}

    with catch_signals() as stop, log.bar(progress.step, settings.steps) as bar:
        clock = time.perf_counter()
        while progress.step < settings.steps and not patience_is_over(progress, settings):
            set_rates(optimizer, schedule(progress.step))
            set_clock(theta, progress.step)
            tasks = tasks_of(progress.step)
            window.add(take_step(tasks))
            progress.step += 1
            bar.update()

            finished, stopping = progress.step == settings.steps, ranks.any(stop.signal is not None)
            if progress.step % settings.log_every == 0 or finished:
                rate = float(optimizer.param_groups[0]["lr"])
                log.metrics(progress.step, "train", window.flush(progress.step) | {"lr": rate})
            if progress.step % settings.eval_every == 0 or finished or stopping:
                check_weights(theta, progress.step)  # waits for the device, so the clock is right
                progress.seconds += time.perf_counter() - clock
            if progress.step % settings.eval_every == 0 or finished:
                score, scores = validate()
                log.metrics(progress.step, "val", scores)
                for name in progress.rank(score, settings.keep_best):
                    save(name)
                save("last")
                clock = time.perf_counter()
            if stopping:
                save("last")
                progress.stopped = stop.signal or "another process"
                return


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's rate to `factor` times its initial one."""
    for group in optimizer.param_groups:
        rate = group["initial_lr"] * factor
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)  # where a CUDA graph reads it
        else:
            group["lr"] = rate


def set_clock(theta: Theta, step: int) -> None:
    """Tell methods that anneal something how many outer steps were taken."""
    if "step" in theta.get("clock", {}):
        with torch.no_grad():
            theta["clock"]["step"].fill_(step)


def descend(
    theta: Theta,
    gradient: Theta,
    optimizer: torch.optim.Optimizer,
    settings: TrainerSettings,
    carried: tuple[str, ...] = (),
) -> None:
    """Clip the gradient as configured and take one step of the outer optimiser, in place.

    A `carried` component is neither clipped nor given to the optimiser: the whole gradient is subtracted from it.
    """
    learned = {component: params for component, params in theta.items() if component not in carried}
    for component, params in learned.items():
        for name, p in params.items():
            p.grad = gradient[component][name]
    for clip, limits in ((clip_grad_norm_, settings.clip_norm), (clip_grad_value_, settings.clip_value)):
        if isinstance(limits, dict):
            for component, limit in limits.items():
                clip(learned[component].values(), limit)
        elif limits is not None:
            clip([p for params in learned.values() for p in params.values()], limits)
    optimizer.step()
    with torch.no_grad():
        for component in carried:
            for name, p in theta[component].items():
                p -= gradient[component][name]


def patience_is_over(progress: Progress, settings: TrainerSettings) -> bool:
    return settings.patience is not None and progress.unimproved >= settings.patience


def check_weights(theta: Theta, step: int) -> None:
    """Raise NonFiniteLoss if a weight is not finite."""
    for component, params in theta.items():
        if not all(bool(p.isfinite().all()) for p in params.values()):
            raise NonFiniteLoss(f"a weight of the {component} is not finite at step {step}")
