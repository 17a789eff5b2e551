"""Changes of pictures in training, compared with torchvision's for known draws."""

import pytest
import torch
import torchvision.transforms.functional as TF

from metarun.core.seeding import generator_for
from metarun.datasets.sampling.augment import UNCHANGED, PictureTransform, crop_randomly, jitter_colours


def pictures(n: int = 5, channels: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (n, channels, 6, 8), dtype=torch.uint8, generator=generator_for("pictures"))


def test_by_default_a_picture_is_what_was_stored() -> None:
    generator = generator_for("view")
    before = generator.get_state()
    assert torch.equal(UNCHANGED(pictures(), generator), pictures().float() / 255)
    assert torch.equal(generator.get_state(), before)  # nothing was drawn


def test_a_crop_is_a_window_of_the_padded_picture() -> None:
    x = pictures().float()
    generator = generator_for("crop")
    down, right = torch.randint(5, (2, 5, 1), generator=generator_for("crop")).flatten(1)
    for i, found in enumerate(crop_randomly(x, 2, generator)):
        assert torch.equal(found, TF.crop(TF.pad(x[i], [2]), int(down[i]), int(right[i]), 6, 8))
    assert len({*zip(down.tolist(), right.tolist())}) > 1


@pytest.mark.parametrize("channels", [1, 3])
def test_jitter_is_torchvisions(channels: int) -> None:
    x = pictures(channels=channels).float() / 255
    drawn = generator_for("j")
    factors = [1 + 0.4 * (2 * torch.rand(5, 1, 1, 1, generator=drawn) - 1).flatten() for _ in range(3)]
    for i, found in enumerate(jitter_colours(x, 0.4, generator_for("j"))):
        expected = TF.adjust_brightness(x[i], float(factors[0][i]))
        expected = TF.adjust_contrast(expected, float(factors[1][i]))
        if channels == 3:
            expected = TF.adjust_saturation(expected, float(factors[2][i]))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_flips_and_normalisation_of_a_whole_batch_of_tasks() -> None:
    x = pictures(200).view(2, 4, 25, 3, 6, 8)
    found = PictureTransform(flip=True, mean=(0.1, 0.2, 0.3), std=(1, 2, 4))(x, generator_for("flip"))
    assert found.shape == x.shape
    stored = (found * torch.tensor([1.0, 2, 4])[:, None, None] + torch.tensor([0.1, 0.2, 0.3])[:, None, None]) * 255
    stored = stored.round().to(torch.uint8).flatten(0, 2)
    same, mirrored = ((stored == other).flatten(1).all(1) for other in (x.flatten(0, 2), x.flatten(0, 2).flip(-1)))
    assert (same ^ mirrored).all()
    assert 70 < int(mirrored.sum()) < 130
