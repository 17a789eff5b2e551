"""Work that PyTorch's threads share by items: in their order, none of them shared, whatever their number."""

import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from metarun.core.threads import share_among_threads


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_each_thread_computes_a_part_alone_at_the_same_time(threads: int) -> None:
    together, ahead = threading.Barrier(threads), True

    def work(items: Tensor) -> Tensor:
        nonlocal ahead
        assert torch.get_num_threads() == 1
        assert len(items) == (1 if ahead else 9 // threads)
        if not ahead:
            together.wait(timeout=10)  # breaks if parts come one after another
        ahead = False
        return 2 * items

    items = torch.arange(10.0)[:, None]
    assert torch.equal(share_among_threads(work, items), 2 * items)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("number", [1, 2, 3, 5])
def test_few_items_are_in_their_order(threads: int, number: int) -> None:
    items = [chr(ord("a") + i) for i in range(number)]
    found = share_among_threads(lambda part: torch.tensor([ord(item) for item in part]), items)
    assert found.tolist() == [ord("a") + i for i in range(number)]


def test_an_error_in_a_part_is_raised_and_threads_are_given_back(threads: int) -> None:
    def work(items: Tensor) -> Tensor:
        if len(items) > 1:
            raise ValueError("in a part")
        return items

    with pytest.raises(ValueError, match="in a part"):
        share_among_threads(work, torch.zeros(7, 1))
    assert torch.get_num_threads() == threads
