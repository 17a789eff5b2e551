"""The named picture sets: where each is looked for, in which forms, and what it must hold to be whole."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from metarun.core.types import Split
from metarun.datasets.storage import layouts
from metarun.datasets.storage.layouts import SPLITS, Classes, Listing


@dataclass(frozen=True)
class Known:
    """A published set. `forms` are tried in turn; each gives nothing where a folder does not have it."""

    folders: tuple[str, ...]  # under data_dir
    classes: tuple[int, int, int]  # of train, val and test
    per_class: int | None  # None: they differ
    forms: tuple[Callable[[Path], Listing | None], ...]
    source: str  # where a user gets it
    download: tuple[str, str] | None = None  # URL and md5

    def found(self, root: Path) -> Listing | None:
        return next((listing for form in self.forms if (listing := form(root))), None)

    def lacks(self, listing: Listing) -> str | None:
        """What keeps it from being whole."""
        for split, count in zip(SPLITS, self.classes):
            classes = listing[split]
            if len(classes) != count:
                return f"{split} has {len(classes)} classes, not {count}"
            for name, pictures in classes.items():
                if self.per_class not in (None, len(pictures)):
                    return f"class {name} of {split} has {len(pictures)} pictures, not {self.per_class}"
        return None


def lists(name: str) -> dict[Split, list[str]]:
    """The classes of each split, as published; see splits/README.md."""
    text = files("metarun.datasets").joinpath("splits", f"{name}.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def listed(form: Callable[[Path], Classes | None], name: str) -> Callable[[Path], Listing | None]:
    return lambda root: layouts.chosen(form(root), lists(name))


IMAGENET = (
    "its pictures are ImageNet's: https://image-net.org gives them to those who agree to its terms, for "
    "non-commercial research; there is no free official download of this set"
)
CIFAR = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85"  # torchvision's


def cifar(name: str, classes: tuple[int, int, int]) -> Known:
    return Known(("cifar100",), classes, 600, (listed(layouts.cifar100, name),), f"put {CIFAR[0]} there", CIFAR)


COLLECTIONS = {
    "miniimagenet": Known(
        ("mini-imagenet", "miniimagenet", "miniImageNet", "mini_imagenet"),
        (64, 16, 20),
        600,
        (layouts.cached_pickles, layouts.ravi, layouts.divided),
        IMAGENET,
    ),
    "tieredimagenet": Known(
        ("tiered-imagenet", "tieredimagenet", "tieredImageNet", "imagenet"),
        (351, 97, 160),
        None,
        (layouts.png_pickles, layouts.divided, listed(layouts.imagenet, "tieredimagenet")),
        IMAGENET,
    ),
    "cifar_fs": cifar("cifar_fs", (64, 16, 20)),
    "fc100": cifar("fc100", (60, 20, 20)),
    "cub": Known(
        ("cub", "CUB_200_2011"),
        (100, 50, 50),
        None,
        (listed(layouts.whole, "cub"),),
        "download CUB_200_2011.tgz from https://data.caltech.edu/records/65de6-vp158 and put it there",
    ),
}
