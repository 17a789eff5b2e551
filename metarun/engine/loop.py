"""The loop: meta-training of every method, and the only place that knows about many tasks and steps."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from metarun.config.registry import traits_of
from metarun.config.schema import TrainerSettings
from metarun.core.types import Algorithm, Episode, Metrics, Theta
from metarun.engine.distributed import ALONE, Ranks
from metarun.engine.state import Log, Progress, State
from metarun.engine.stop import stop_signals


class NonFiniteLoss(Exception):
    """Training diverged: the loss or a weight is not a finite number."""


def train(
    state: State,
    meta_step: Callable[[int], Metrics],
    schedule: Callable[[int], float],
    settings: TrainerSettings,
    *,
    validate: Callable[[], tuple[float, dict[str, Any]]],
    save: Callable[[str], None],
    log: Log,
    ranks: Ranks = ALONE,
) -> None:
    """Descend the mean task loss in `state.theta`, in place, from `state.progress.step` to `settings.steps`.

    `meta_step` draws the tasks of a step from the step alone, so a resumed run is bit-equal to one that never
    stopped, and descends once (see `descended`); `validate` gives a score, of which more is better, and what to log;
    `save("last")`, `save("best")` and, of the `keep_best` best, `save("best-STEP")` write checkpoints.
    Raises NonFiniteLoss.
    """
    theta, optimizer, progress, window = state.theta, state.optimizer, state.progress, state.window
    with stop_signals() as stop, log.bar(progress.step, settings.steps) as bar:
        clock = time.perf_counter()
        while progress.step < settings.steps and not patience_is_over(progress, settings):
            set_rates(optimizer, schedule(progress.step))
            window.add(meta_step(progress.step))
            progress.step += 1
            bar.update()

            finished, stopping = progress.step == settings.steps, ranks.any(stop.signal is not None)
            if progress.step % settings.log_every == 0 or finished:
                rate = float(optimizer.param_groups[0]["lr"])
                log.metrics(progress.step, "train", finite(window.flush(), progress.step) | {"lr": rate})
            if progress.step % settings.eval_every == 0 or finished or stopping:
                check_weights(theta, progress.step)  # waits for the device, so the clock is right
                progress.seconds += time.perf_counter() - clock
            if progress.step % settings.eval_every == 0 or finished:
                score, scores = validate()
                log.metrics(progress.step, "val", scores)
                progress.unimproved += 1
                if progress.best is None or score > progress.best:
                    progress.best, progress.best_step, progress.unimproved = score, progress.step, 0
                    save("best")
                if leads(progress, score, settings.keep_best):
                    save(f"best-{progress.step}")
                save("last")
                clock = time.perf_counter()
            if stopping:
                save("last")
                progress.stopped = stop.signal or "another process"
                return


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        rate = group["initial_lr"] * factor
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)  # where a CUDA graph reads it
        else:
            group["lr"] = rate


def descended(
    algo: Algorithm,
    state: State,
    tasks: Episode,
    gradient_of: Callable[[Theta, Episode], tuple[Tensor, Metrics, Theta]],
    settings: TrainerSettings,
) -> Metrics:
    """Descend the mean loss of these tasks once, in place: their mean loss before that, and mean metrics.

    `gradient_of` gives both and the gradient.
    """
    loss, metrics, gradient = gradient_of(state.theta, tasks)
    descend(state.theta, gradient, state.optimizer, settings, traits_of(algo).carried)
    return {"loss": loss, **metrics}


def descend(
    theta: Theta,
    gradient: Theta,
    optimizer: torch.optim.Optimizer,
    settings: TrainerSettings,
    carried: tuple[str, ...] = (),
) -> None:
    """Clip the gradient as configured, take one step of the outer optimiser; hand on what is `carried`."""
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


def leads(progress: Progress, score: float, places: int) -> bool:
    """Whether this step is among several best, whose list it joins."""
    progress.leaders = sorted([*progress.leaders, [score, progress.step]], key=lambda leader: -leader[0])[:places]
    return places > 1 and [score, progress.step] in progress.leaders


def patience_is_over(progress: Progress, settings: TrainerSettings) -> bool:
    return settings.patience is not None and progress.unimproved >= settings.patience


def finite(means: dict[str, Any], step: int) -> dict[str, Any]:
    if not torch.tensor(means["loss"]).isfinite():
        raise NonFiniteLoss(f"the loss is {means['loss']} at step {step}")
    return means


def check_weights(theta: Theta, step: int) -> None:
    for component, params in theta.items():
        if not all(bool(p.isfinite().all()) for p in params.values()):
            raise NonFiniteLoss(f"a weight of the {component} is not finite at step {step}")
