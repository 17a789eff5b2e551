"""What each further process of a run does: its share of the training or of the test."""

import contextlib
import signal
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist

from metarun.config.errors import Failed, Stopped
from metarun.config.load import load_settings
from metarun.config.schema import Settings
from metarun.engine.build import Experiment
from metarun.engine.distributed import Ranks, is_lost, joined, together, worker_count
from metarun.engine.process import prepare_cpu
from metarun.runs.result import _tested, test
from metarun.runs.session import trained


def work(rank: int, count: int, port: int, threads: int, values: dict[str, Any], job: str) -> None:
    """Follow rank 0 through `job`, "train" or "test", as one of `count` processes that meet at `port`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: rank 0 decides, and tells
    prepare_cpu()
    torch.set_num_threads(threads)
    store = dist.TCPStore("127.0.0.1", port, count, is_master=False)
    try:
        with joined(rank, count, store) as ranks:
            follow(load_settings(values), ranks, job)
    except RuntimeError as error:
        if not is_lost(error):  # where rank 0 has left, it has told why
            raise


def follow(settings: Settings, ranks: Ranks, job: str) -> None:
    """What every rank but the first does of `run` ("train") and of `retest` ("test"): its share, in silence."""
    experiment = Experiment.of(settings)
    with contextlib.suppress(Failed, Stopped):  # rank 0 tells
        if job == "train":
            trained(experiment, None, {}, ranks)
        test(experiment, *_tested(experiment, None, ranks), None, ranks)


def ranks_of(experiment: Experiment, config: dict[str, Any], job: str) -> AbstractContextManager[Ranks]:
    trainer, device = experiment.settings.trainer, experiment.device
    return together(worker_count(trainer.workers, trainer.tasks_per_step, device), device, work, (config, job))
