"""The published picture sets: where each is looked for, in which forms, and what a whole copy holds."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from metarun.config.words import count
from metarun.core.types import Split
from metarun.datasets.storage import layouts, published
from metarun.datasets.storage.tree import SPLITS, Classes, Listing


@dataclass(frozen=True)
class KnownSet:
    """A published set. `forms` are tried in turn; each returns None if a folder does not have it."""

    folders: tuple[str, ...]  # names under data_dir
    classes: tuple[int, int, int]  # of train, val and test
    per_class: int | None  # pictures; None: they differ
    forms: tuple[Callable[[Path], Listing | None], ...]
    source: str  # where a user gets it
    download: tuple[str, str] | None = None  # URL and md5

    def find(self, root: Path) -> Listing | None:
        """The pictures in the first form that the folder has. Raises ConfigError."""
        return next((listing for form in self.forms if (listing := form(root))), None)

    def find_gap(self, listing: Listing) -> str | None:
        """What the listing lacks; None if it is whole."""
        for split, classes in zip(SPLITS, self.classes):
            found = listing[split]
            if len(found) != classes:
                return f"{split} has {count(len(found), 'class')}, not {classes}"
            for name, pictures in found.items():
                if self.per_class not in (None, len(pictures)):
                    return f"class {name} of {split} has {count(len(pictures), 'picture')}, not {self.per_class}"
        return None


def read_class_lists(name: str) -> dict[Split, list[str]]:
    """The classes of each split, as published; see splits/README.md."""
    text = files("metarun.datasets").joinpath("splits", f"{name}.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def split_by_lists(form: Callable[[Path], Classes | None], name: str) -> Callable[[Path], Listing | None]:
    """The form whose classes the published lists of `name` split."""
    return lambda root: published.select(form(root), read_class_lists(name))


IMAGENET = (
    "its pictures are ImageNet's: https://image-net.org gives them to those who agree to its terms, for "
    "non-commercial research; there is no free official download of this set"
)
CIFAR = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85"  # torchvision's


def _make_cifar_set(name: str, classes: tuple[int, int, int]) -> KnownSet:
    forms = (split_by_lists(published.find_cifar100, name),)
    return KnownSet(("cifar100",), classes, 600, forms, f"put {CIFAR[0]} there", CIFAR)


KNOWN_SETS = {
    "miniimagenet": KnownSet(
        ("mini-imagenet", "miniimagenet", "miniImageNet", "mini_imagenet"),
        (64, 16, 20),
        600,
        (published.find_cache_pickles, published.find_ravi_tables, layouts.find_splits),
        IMAGENET,
    ),
    "tieredimagenet": KnownSet(
        ("tiered-imagenet", "tieredimagenet", "tieredImageNet", "imagenet"),
        (351, 97, 160),
        None,
        (published.find_png_pickles, layouts.find_splits, split_by_lists(published.find_imagenet, "tieredimagenet")),
        IMAGENET,
    ),
    "cifar_fs": _make_cifar_set("cifar_fs", (64, 16, 20)),
    "fc100": _make_cifar_set("fc100", (60, 20, 20)),
    "cub": KnownSet(
        ("cub", "CUB_200_2011"),
        (100, 50, 50),
        None,
        (split_by_lists(layouts.find_classes, "cub"),),
        "download CUB_200_2011.tgz from https://data.caltech.edu/records/65de6-vp158 and put it there",
    ),
    "emnist": KnownSet(
        ("emnist",),
        (0, 31, 31),
        None,
        (split_by_lists(layouts.find_classes, "emnist"),),
        "write the pictures of EMNIST ByClass (https://www.nist.gov/itl/products-and-services/emnist-dataset) into "
        "class folders there, named 0 to 61 as its classes are numbered",
    ),
}
