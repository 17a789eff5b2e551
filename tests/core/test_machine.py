"""Devices by name, as their tensors say it."""

import pytest
import torch

from metarun.config.errors import ConfigError
from metarun.core.machine import find_device, use_device
from tests.support.fake_cuda import FakeCuda


@pytest.mark.parametrize(("name", "rank", "index"), [("cuda", None, 0), ("cuda:1", None, 1), ("auto", "1", 1)])
def test_a_gpu_has_its_index_and_becomes_the_current_one(
    name: str, rank: str | None, index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = FakeCuda(monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    if rank is None:
        monkeypatch.delenv("LOCAL_RANK", raising=False)
    else:
        monkeypatch.setenv("LOCAL_RANK", rank)  # torchrun's
    device = find_device(name)
    assert device == torch.device("cuda", index)
    use_device(device)
    assert cuda.device == index
    with pytest.raises(ConfigError, match="choose from auto, cpu, cuda:1, cuda:0"):
        find_device("cuda:2")


def test_a_gpu_that_all_processes_of_a_launcher_would_use_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCuda(monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert find_device("cuda") == torch.device("cuda", 1)
    with pytest.raises(ConfigError, match=r"device is 'cuda:0': all of the launcher's processes would use it"):
        find_device("cuda:0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")  # one on each machine
    assert find_device("cuda:0") == torch.device("cuda", 0)
