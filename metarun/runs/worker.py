"""The further processes of a run: each does its share of the training and of the test, in silence."""

import contextlib
import signal
from contextlib import AbstractContextManager
from typing import Any, Literal

from metarun.config.errors import Failed, Stopped
from metarun.config.load import load_settings
from metarun.config.schema import Settings
from metarun.engine.build import Experiment
from metarun.engine.distributed import Ranks, count_workers, is_lost, join_ranks, start_ranks
from metarun.engine.plan import Plan
from metarun.engine.process import prepare_cpu
from metarun.runs.scoring import load_models, score_models
from metarun.runs.session import train_run

Job = Literal["train", "test"]


def start_workers(experiment: Experiment, config: dict[str, Any], job: Job) -> AbstractContextManager[Ranks]:
    """Start the processes that share this run's tasks, as many as `trainer.workers` says."""
    trainer, device = experiment.settings.trainer, experiment.device
    count = count_workers(trainer.workers, trainer.tasks_per_step, device)
    return start_ranks(count, device, work, (config, job))


def work(rank: int, count: int, port: int, threads: int, config: dict[str, Any], job: Job) -> None:
    """Follow rank 0, which listens at `port`, through `job` as one of `count` processes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: rank 0 decides, and tells
    prepare_cpu()
    try:
        with join_ranks(rank, count, port, threads) as ranks:
            follow(load_settings(config), ranks, job)
    except RuntimeError as error:
        if not is_lost(error):  # where rank 0 has left, it has told why
            raise


def follow(settings: Settings, ranks: Ranks, job: Job) -> None:
    """Do what every rank but the first does of a run ("train") or of a later test ("test")."""
    experiment = Experiment.build(settings)
    with contextlib.suppress(Failed, Stopped):  # rank 0 tells
        if job == "train":
            train_run(experiment, None, {}, ranks)
        models, facts = load_models(experiment, None, ranks)
        plan = Plan(**facts[-1]["progress"]["plan"])
        score_models(experiment, models, plan, None, ranks)
