"""The picture of some tasks."""

from pathlib import Path

import torch
from PIL import Image

from metarun.analysis.preview import EDGE, GAP, arrange
from metarun.core.types import Episode, Examples
from tests.conftest import Command


def test_a_row_holds_a_class_with_its_support_first() -> None:
    """Two ways of one shot and two queries; an image is 2 x 2 pixels of one value."""

    def examples(*values: float) -> Examples:
        return Examples(torch.tensor(values).view(1, -1, 1, 1, 1).expand(1, -1, 1, 2, 2), torch.zeros(1, len(values)))

    found = arrange(Episode(examples(0.0, 0.2), examples(0.4, 0.5, 0.6, 1.0)), ways=2)
    size = 2 + 2 * EDGE
    assert found.shape == (2 * size, 3 * size + GAP)
    centre = [EDGE, size + GAP + EDGE, 2 * size + GAP + EDGE]
    expected = [[0.0, 0.4, 0.5], [0.2, 0.6, 1.0]]
    for row, values in enumerate(expected):
        torch.testing.assert_close(found[row * size + EDGE, centre], torch.tensor(values))


def test_the_command_writes_one(metarun: Command, place: Path) -> None:
    answer = metarun("data", "glyphs", "--preview", "tasks.png")
    assert answer.code == 0, answer.err
    assert answer.out.endswith("some tasks of 5 ways and 1 shot: tasks.png\n")
    with Image.open("tasks.png") as picture:
        assert min(picture.size) > 600
    answer = metarun("data", "sinusoid", "--preview", "waves.png")
    assert (answer.code, answer.err) == (
        2,
        "metarun: --preview shows images: this dataset's inputs have the shape (1,)\n",
    )
