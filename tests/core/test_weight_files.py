"""Files of weights: read without running anything, and refused in a line that says why."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from metarun.config.errors import ConfigError
from metarun.core.weight_files import fill

WEIGHTS = {"0.weight": torch.rand(3, 2), "0.bias": torch.rand(3)}


class Arbitrary:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("code of a stranger",)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


def own(**changes: Any) -> dict[str, torch.Tensor]:
    """The weights of that network, changed: `w1_weight` is "1.weight", and None takes one away."""
    weights: dict[str, Any] = {**network().state_dict(), **WEIGHTS}
    weights.update({re.sub("^w(.)_", r"\1.", name): value for name, value in changes.items()})
    return {name: value for name, value in weights.items() if value is not None}


def half(weights: Any) -> bytes:
    """The first half of the weights' file, as a download that broke leaves it."""
    content = io.BytesIO()
    torch.save(weights, content)
    return content.getvalue()[: content.tell() // 2]


@pytest.mark.parametrize("save", [torch.save, save_file])
@pytest.mark.parametrize("prefix", ["", "part."])
def test_a_network_has_the_weights_of_its_file(save: Callable[[Any, Path], None], prefix: str, tmp_path: Path) -> None:
    """Neither a last part nor what has another prefix need fit; a count of batches, which older files lack, is none."""
    weights = own(w1_num_batches_tracked=None) | {"last.0.weight": torch.rand(7, 7)}
    elsewhere = {"other.weight": torch.rand(1)} if prefix else {}
    file, found = tmp_path / ("w.safetensors" if save is save_file else "w.pth"), network()
    save({f"{prefix}{name}": value for name, value in weights.items()} | elsewhere, file)
    fill(found, "key", file, "it", prefix, without=("last",))
    assert all(torch.equal(found.state_dict()[name], value) for name, value in WEIGHTS.items())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (own(w0_bias=None), "its weights are not those of it: it lacks 0.bias"),
        (own(w2_a=torch.ones(1)), "its weights are not those of it: it has 2.a"),
        (own(w0_bias=torch.ones(7)), "its weights are not those of it: 0.bias is [7], not [3]"),
        ({f"{i}": torch.ones(1) for i in range(5)}, "0.weight, 1.bias and 3 more; it has 0, 1, 2 and 2 more"),
        ({"model": own(), "epoch": 3}, "are not tensors alone, but epoch, model: save network.state_dict() by itself"),
        ([torch.ones(1)], "are not tensors alone, but a list"),
        (network(), "the file holds Python objects (torch.nn.modules.container.Sequential), which could run code"),
        ({"w": Arbitrary()}, "the file holds Python objects (print), which could run code"),
        (half(own()), "cannot be read: the file is damaged or of another kind"),
        (b"", "cannot be read: the file is damaged or of another kind"),
        (b"no weights", "cannot be read: the file is damaged or of another kind"),
        (None, "there is no file"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_in_a_line(
    content: Any, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "w.pth"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        torch.save(content, file)
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        fill(network(), "key", file, "it")
    assert str(caught.value).startswith("key")
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "stranger" not in capfd.readouterr().out
