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
