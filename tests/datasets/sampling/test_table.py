"""Tables of pictures: ragged and rotated classes, and the same episodes wherever the pictures are kept."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from metarun.config.errors import ConfigError
from metarun.core.seeding import generator_for
from metarun.core.types import TaskShape
from metarun.datasets.sampling import table as tables
from metarun.datasets.sampling.episodes import EpisodeSampler
from metarun.datasets.sampling.table import Table, place, rotate
from tests.support.tiny_pictures import images, write_folders

CPU = torch.device("cpu")


def ragged() -> Table:
    """Three classes of 2, 5 and 3 pictures, shuffled; a picture's value is 10 times its class and its number there."""
    values = torch.tensor([10, 0, 11, 20, 12, 1, 13, 21, 14, 22])
    return Table.from_labels(values.to(torch.uint8).view(-1, 1, 1, 1), values // 10, torch.arange(10), CPU)


def test_every_picture_of_a_ragged_class_is_drawn_and_none_twice() -> None:
    sampler = EpisodeSampler(ragged(), TaskShape(3, 1, 1))
    support, query = sampler.sample(500, generator_for("ragged"))
    values = torch.stack([support.x, query.x]).mul(255).round().long().flatten(2)  # [2, T, 3]
    assert (values[0] // 10 == values[1] // 10).all()
    assert (values[0] != values[1]).all()
    assert values.unique().tolist() == [0, 1, 10, 11, 12, 13, 14, 20, 21, 22]
    counts = torch.stack([(values == value).sum() for value in range(10, 15)]) / (values // 10 == 1).sum()
    assert counts == pytest.approx([0.2] * 5, abs=0.04)
    with pytest.raises(
        ConfigError, match=r"shots \+ queries is 2 \+ 1 = 3: the smallest class of this split has 2 examples"
    ):
        EpisodeSampler(ragged(), TaskShape(3, 2, 1))


def test_minibatches_of_ragged_classes_are_even_over_pictures() -> None:
    _, query = EpisodeSampler(ragged(), TaskShape(3, 1, 1)).minibatches(5000).sample(1, generator_for("batch"))
    values = query.x.mul(255).round().long().flatten()
    assert torch.equal(values // 10, query.y.flatten())
    assert torch.bincount(values)[[0, 1, *range(10, 15), 20, 21, 22]] / 5000 == pytest.approx([0.1] * 10, abs=0.02)


def test_rotated_classes_are_the_four_rotations() -> None:
    pictures = torch.randint(0, 256, (2, 3, 2, 4, 4), dtype=torch.uint8, generator=generator_for("turned"))
    upright = Table.from_classes(pictures)
    table = replace(upright, rotated=True)
    assert (len(table), table.total) == (8, 24)
    members = torch.arange(3).expand(8, 3)
    expected = torch.stack([pictures.rot90(q, (-2, -1)) for q in range(4)], dim=1).flatten(0, 1)  # [8, 3, 2, 4, 4]
    assert torch.equal(table.take(torch.arange(8), members), expected)
    found, classes = table.at(torch.arange(24))
    for picture, label in zip(found, classes):
        assert any(torch.equal(picture, option) for option in expected[label])
    assert torch.bincount(classes).tolist() == [3] * 8
    assert torch.equal(rotate(pictures[0], torch.zeros(3, dtype=torch.long)), pictures[0])


def test_placements_give_the_same_episodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    write_folders(tmp_path / "pictures")
    shape = TaskShape(2, 1, 2)
    drawn = {}
    for placement in ("auto", "device", "host", "disk"):
        sampler = images("folder", tmp_path / "pictures", placement=placement, crop=1, flip=True).tasks("train", shape)
        drawn[placement] = sampler.sample(7, generator_for("placement"))
        mapped = sampler.table.examples.untyped_storage().nbytes() == 28 * 3 * 6 * 6  # all splits' file
        assert mapped == (placement in ("auto", "disk"))
    for episode in drawn.values():
        for part, expected in zip(episode, drawn["disk"]):
            assert torch.equal(part.x, expected.x)
            assert torch.equal(part.y, expected.y)


@pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="this PyTorch does not know CUDA")
@pytest.mark.parametrize("name", ["cuda", "cuda:0"])
def test_pictures_on_the_gpu_are_taken_from_there(name: str) -> None:
    """Tensors of `cuda` say that they are on cuda:0: they are not brought through the host's pinned memory."""
    device = torch.device(name)
    with FakeTensorMode():
        rows, starts, counts = (torch.tensor(numbers, device=device) for numbers in ([0, 1, 2, 3], [0, 2], [2, 2]))
        pictures = torch.zeros(4, 3, 8, 8, dtype=torch.uint8, device=device)
        table = Table(pictures, rows, starts, counts, device, 2, 2, counts)
        index = torch.zeros(1, 2, 1, dtype=torch.long, device=device)
        assert table.take(index[..., 0], index).device == torch.device("cuda:0")


def test_pictures_that_do_not_fit_are_refused_and_auto_finds_room(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures, rows = torch.zeros(100, 1, 10, 10, dtype=torch.uint8), torch.arange(50)  # 5,000 bytes of 10,000
    cuda = torch.device("cuda")
    asked: list[str] = []
    free: dict[str, int] = {}
    monkeypatch.setattr(tables, "free_memory", lambda device: free[device.type])

    def record(self: torch.Tensor, device: torch.device) -> torch.Tensor:
        asked.append(device.type)
        return self

    monkeypatch.setattr(torch.Tensor, "to", record)
    for on_gpu, on_host, where in ((10_000, 0, ["cuda"]), (9_999, 10_000, ["cpu"]), (9_999, 9_999, [])):
        asked.clear()
        free |= {"cuda": on_gpu, "cpu": on_host}
        place(pictures, rows, "auto", cuda)
        assert asked == where
    free["cuda"] = 4_999
    with pytest.raises(
        ConfigError, match=r"dataset.placement is device: the pictures take .* choose from auto, host, disk"
    ):
        place(pictures, rows, "device", cuda)


PROGRAM = """
import resource, sys, torch
from pathlib import Path
from metarun.datasets.sampling.episodes import EpisodeSampler
from metarun.datasets.storage.packing import map_pictures
from metarun.datasets.sampling.table import Table, place
from metarun.core.types import TaskShape
torch.set_num_threads(1)
cpu, rows = torch.device("cpu"), torch.arange(2560)
pictures = map_pictures(Path(sys.argv[1]), (2560, 1, 512, 512))
with open("/proc/self/status") as status:
    used = next(int(line.split()[1]) for line in status if line.startswith("VmData:"))
resource.setrlimit(resource.RLIMIT_DATA, (1024 * used + 64 * 2**20,) * 2)
try:
    place(pictures, rows, "host", cpu)
except (RuntimeError, MemoryError):
    print("not in memory")
sampler = EpisodeSampler(Table.from_labels(pictures, rows // 40, rows, cpu), TaskShape(2, 1, 1))
for step in range(30):
    x = sampler.sample(1, torch.Generator().manual_seed(step)).support.x
print(int(x[0, 0, 0, 0, 0].mul(255).round()))
"""


@pytest.mark.integration
def test_ten_times_more_pictures_than_memory(tmp_path: Path) -> None:
    """A file of 640 MiB, empty but for the first byte of each picture; the process may have 64 MiB more than it has."""
    file = tmp_path / "pictures.u8"
    with file.open("wb") as out:
        out.truncate(640 * 2**20)
        for row in range(2560):
            out.seek(row * 2**18)
            out.write(bytes([row % 251]))
    command = [sys.executable, "-c", PROGRAM, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert done.returncode == 0, done.stderr
    first, last = done.stdout.splitlines()
    assert first == "not in memory"
    drawn = int(torch.rand(1, 64, generator=torch.Generator().manual_seed(29)).argsort(-1)[0, 0])  # the first class
    assert int(last) in [row % 251 for row in range(40 * drawn, 40 * drawn + 40)]
