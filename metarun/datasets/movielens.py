"""Recommendation: each user is a task, whose first ratings say what others will be. For MovieLens, or tables alike."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from metarun.config.errors import ConfigError
from metarun.config.registry import register
from metarun.config.schema import Fraction, NonNegative, Seed
from metarun.config.traits import DatasetTraits
from metarun.config.words import count
from metarun.core.seeding import seed_for
from metarun.core.types import Episode, Examples, Split, TaskShape, TaskSource, TaskSpec
from metarun.datasets.preprocessing import Numbers
from metarun.datasets.storage.archives import fingerprint
from metarun.datasets.storage.ratings import Ratings, read_ratings
from metarun.datasets.storage.tree import SPLITS

FOLDERS = ("movielens", "movielens-latest-small", "ml-latest-small", "ml-1m")  # in data_dir
ROUNDS = 20  # of the alternating fit of the bias model
SOURCE = "ml-latest-small or ml-1m of https://grouplens.org/datasets/movielens"
Items = Literal["known", "new"]


@register(
    "dataset",
    "movielens",
    DatasetTraits(
        kind="regression", metric="mae", duplicates=True, rules=("bias", "item_mean", "user_mean", "overall_mean")
    ),
)
@dataclass(frozen=True)
class MovieLens:
    """Users as tasks; see configs/dataset/movielens.yaml and docs/recommendation.md.

    Users, and items, are divided by a hash of their names. An item's input is its effect in the bias model, the
    logarithm of 1 + its number of ratings in training, and its attributes. Effect and number are 0 of a new item, and
    those of a rating that is trained on leave that rating out.
    """

    path: str | None
    users: Literal["new", "known"]
    items: Literal["known", "new"]
    split_fractions: list[Fraction]
    new_items: Fraction
    held_out: Fraction
    hide: Fraction
    item_shrinkage: NonNegative
    user_shrinkage: NonNegative
    split_seed: Seed
    data_dir: Path
    device: torch.device

    def prepare(self) -> None:
        """Read the ratings. Raises ConfigError if they are missing or cannot be used."""
        _ = self.table

    def tasks(self, split: Split, shape: TaskShape) -> TaskSource:
        """Raises ConfigError if no user has as many ratings as the shape asks for."""
        table = self.table.to(self.device)
        if split == "train":
            rows, starts, sizes = (part.to(self.device) for part in self.find_users(shape))
            return Users(table, rows, starts, sizes, shape, self.hide)
        return ListedUsers(table, self.choose(split, shape).to(self.device), shape)

    def find_users(self, shape: TaskShape) -> tuple[Tensor, Tensor, Tensor]:
        """The ratings that are trained on, and where among them those of each user begin who has enough, and how many
        there are: [n], [users] and [users]. Raises ConfigError if nobody has.
        """
        rows = self.table.trained.nonzero()[:, 0]
        sizes = torch.diff(torch.searchsorted(rows, self.table.starts))
        large, (_, shots, queries) = sizes >= shape.shots + shape.queries, shape
        if not large.any():
            raise ConfigError(
                f"shots + queries is {shots} + {queries} = {shots + queries}: "
                f"no user of train has more than {count(int(sizes.max()), 'rating')} of known items"
            )
        return rows, (sizes.cumsum(0) - sizes)[large], sizes[large]

    def choose(self, split: Split, shape: TaskShape) -> Tensor:
        """The ratings of each user of a split: support, then queries, [users, shots + queries] positions.

        Of new users the first `shots` ratings of known items and then the first others; of known users, in two halves
        for validation and test, the last `shots` that are trained on, and the first that are not.
        """
        table, (_, shots, queries) = self.table, shape
        users = [i for i, part in enumerate(table.split) if part == ("train" if self.users == "known" else split)]
        if self.users == "known":
            users = users[split == "test" :: 2]
        chosen = []
        for user in users:
            own = torch.arange(int(table.starts[user]), int(table.starts[user + 1]))
            known = table.known[table.item[own]]
            past = own[table.trained[own]][-shots:] if self.users == "known" else own[known][:shots]
            free = ~table.trained[own] & ~torch.isin(own, past) & (known == (self.items == "known"))
            if len(past) == shots and len(own[free]) >= queries:
                chosen.append(torch.cat([past, own[free][:queries]]))
        if not chosen:
            raise ConfigError(
                f"shots + queries is {shots} + {queries} = {shots + queries}: none of the {self.users} users of "
                f"{split} has {shots} ratings of known items and {queries} more of {self.items} ones"
            )
        return torch.stack(chosen)

    def describe(self) -> str:
        """Where the ratings are, and their number. Only reads."""
        if not self._place.exists():
            return f"nothing at {self._place}: {self._remedy}"
        try:
            table = self.table
        except ConfigError as error:
            return f"{self._place}: unusable: {error}"
        lines = [f"{self._place}: {count(len(table.item), 'rating')} of {count(len(table.known), 'item')}"]
        lines += [f"{split}: {count(table.split.count(split), 'user')}" for split in SPLITS]
        lines += [f"new items: {int((~table.known).sum())}; attributes: {', '.join(table.names) or 'none'}"]
        return "\n".join(lines)

    def notes(self) -> list[str]:
        """What has no attributes, so that all new items look the same."""
        return [] if self.table.names else ["items have no attributes: all new items look the same"]

    def identity(self) -> dict[str, Any]:
        """The counts, the settings and the hash of all that was read."""
        table = self.table
        settings = ("split_fractions", "new_items", "held_out", "item_shrinkage", "split_seed")
        digest = hashlib.sha256(repr((table.names, table.split)).encode())
        for values in (table.starts, table.item, table.rating, table.attributes):
            digest.update(values.contiguous().numpy().tobytes())
        return {
            "name": "movielens",
            "users": {split: table.split.count(split) for split in SPLITS},
            "items": len(table.known),
            "ratings": len(table.item),
            **{name: getattr(self, name) for name in settings},
            "sha256": digest.hexdigest(),
        }

    def preprocessing(self) -> dict[str, Any]:
        """Numbers as they are."""
        return Numbers().to_json()

    @property
    def _place(self) -> Path:
        if self.path:
            return Path(self.path).expanduser()
        return next(
            (self.data_dir / name for name in FOLDERS if (self.data_dir / name).exists()), self.data_dir / FOLDERS[0]
        )

    @property
    def _remedy(self) -> str:
        return f"put {SOURCE} there, or set dataset.path to a table of ratings, or the folder that has it"

    @cached_property
    def table(self) -> "RatingTable":
        """All ratings. Raises ConfigError."""
        if len(self.split_fractions) != 3 or abs(sum(self.split_fractions) - 1) > 1e-6:
            raise ConfigError(
                f"dataset.split_fractions is {self.split_fractions}: three numbers that add up to 1, of the users in "
                "training, validation and test"
            )
        if not self._place.exists():
            raise ConfigError(f"dataset=movielens: nothing at {self._place}: {self._remedy}")
        return RatingTable.build(self, read_ratings(self._place, fingerprint(self._place)))

    def hash_name(self, kind: str, name: str) -> float:
        """A number in 0..1 that the name and the seed determine."""
        return seed_for(self.split_seed, kind, name) / 2**63


@dataclass(frozen=True)
class RatingTable:
    """All ratings, user by user in the order of time, and the bias model of those that are trained on."""

    split: list[Split]  # of each user
    names: list[str]  # of the attributes
    starts: Tensor  # [users + 1], where the ratings of each user begin
    item: Tensor  # [n]
    rating: Tensor  # [n]
    trained: Tensor  # [n] bool
    known: Tensor  # [items] bool
    attributes: Tensor  # [items, A]
    mean: float  # of all ratings that are trained on
    effect: Tensor  # [n], of the item of each rating, without that rating
    number: Tensor  # [n], of ratings of the item in training, without that rating
    user_shrinkage: float

    @classmethod
    def build(cls, settings: MovieLens, ratings: Ratings) -> "RatingTable":
        """Divide users and items, and fit the bias model. Raises ConfigError if no rating is left to train on."""
        first, second, _ = settings.split_fractions
        drawn = [settings.hash_name("user", name) for name in ratings.users]
        split: list[Split] = ["train" if u < first else "val" if u < first + second else "test" for u in drawn]
        known = torch.tensor([settings.hash_name("item", name) >= settings.new_items for name in ratings.items])
        sizes = torch.bincount(ratings.user, minlength=len(ratings.users))
        starts = torch.cat([torch.zeros(1, dtype=torch.long), sizes.cumsum(0)])
        place = torch.arange(len(ratings.user)) - starts[ratings.user]
        early = place < (1 - settings.held_out) * sizes[ratings.user]
        trained = torch.tensor([part == "train" for part in split])[ratings.user] & known[ratings.item] & early
        if not trained.any():
            raise ConfigError("no rating is left to train on: lower dataset.new_items or dataset.held_out")
        mean, user_effect, item_effect = fit_biases(
            ratings.user[trained],
            ratings.item[trained],
            ratings.rating[trained],
            (len(ratings.users), len(ratings.items)),
            (settings.user_shrinkage, settings.item_shrinkage),
        )
        number = torch.bincount(ratings.item[trained], minlength=len(ratings.items)).float()[ratings.item]
        effect, own = item_effect[ratings.item], ratings.rating - mean - user_effect[ratings.user]
        total = effect * (number + settings.item_shrinkage)
        without = (total - own) / (number - 1 + settings.item_shrinkage).clamp(min=1e-6)
        effect, number = torch.where(trained & (number > 1), without, effect), number - trained.float()
        effect = torch.where(number > 0, effect, 0.0)
        return cls(
            split, ratings.names, starts, ratings.item, ratings.rating, trained, known, ratings.attributes, mean,
            effect, number, settings.user_shrinkage,
        )  # fmt: skip

    def to(self, device: torch.device) -> "RatingTable":
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return RatingTable(**{**vars(self), **moved})

    def take(self, rows: Tensor, shown: Tensor | None = None) -> Examples:
        """The ratings at positions [...] -> x [..., 2 + A], y [..., 1]; effect and number count where `shown`."""
        numbers = torch.stack([self.effect[rows], self.number[rows].log1p()], -1)
        numbers = numbers if shown is None else numbers * shown[..., None]
        return Examples(torch.cat([numbers, self.attributes[self.item[rows]]], -1), self.rating[rows][..., None])

    def spec(self, listed: int | None = None) -> TaskSpec:
        size = 2 + self.attributes.shape[1]
        return TaskSpec("regression", (size,), 1, metric="mae", beside=("ndcg",), rule=self.predict, listed=listed)

    def predict(self, rule: str, support: Examples, x: Tensor) -> Tensor:
        """By the `bias` model, mean + effect of the item + effect of the user, both shrunk; by the item's part of it;
        by the mean of the support, or of all ratings. x: [n, 2 + A] -> [n, 1].
        """
        if rule == "user_mean":
            return support.y.mean(0).expand(len(x), 1)
        item = self.mean + x[:, :1] if rule != "overall_mean" else torch.full_like(x[:, :1], self.mean)
        if rule != "bias":
            return item
        above = support.y - self.mean - support.x[:, :1]
        return item + above.sum() / (len(above) + self.user_shrinkage)


def fit_biases(
    user: Tensor, item: Tensor, rating: Tensor, sizes: tuple[int, int], shrinkage: tuple[float, float]
) -> tuple[float, Tensor, Tensor]:
    """The overall mean, and the effects [users] and [items] that minimise the squared error of mean + effects with the
    penalty `shrinkage` on the square of each effect; by turns.
    """
    mean = float(rating.mean())

    def fit(group: Tensor, residual: Tensor, size: int, penalty: float) -> Tensor:
        total = torch.zeros(size).index_add(0, group, residual)
        return total / (torch.bincount(group, minlength=size) + penalty).clamp(min=1e-6)

    items = torch.zeros(sizes[1])
    for _ in range(ROUNDS):
        users = fit(user, rating - mean - items[item], sizes[0], shrinkage[0])
        items = fit(item, rating - mean - users[user], sizes[1], shrinkage[1])
    return mean, users, items


@dataclass(frozen=True)
class Users:
    """Draws users of training, and a place in their ratings: the support, which the queries follow in time.

    With the chance `hide` the effect and number of a query's item are hidden, as if the item were new.
    """

    table: RatingTable
    rows: Tensor  # [n], the ratings that are trained on
    starts: Tensor  # [users], where in `rows` those of a user begin
    sizes: Tensor  # [users]
    shape: TaskShape
    hide: float

    @property
    def spec(self) -> TaskSpec:
        return self.table.spec()

    def sample(self, num_tasks: int, generator: torch.Generator) -> Episode:
        """support.x [T, K, 2 + A], support.y [T, K, 1]; query.x [T, Q, 2 + A], query.y [T, Q, 1]."""
        _, shots, queries = self.shape
        device = self.rows.device
        users = torch.randint(len(self.sizes), (num_tasks,), generator=generator, device=generator.device).to(device)
        drawn = torch.rand(num_tasks, 1 + queries, generator=generator, device=generator.device).to(device)
        first = (drawn[:, 0] * (self.sizes[users] - shots - queries + 1)).long()
        rows = self.rows[(self.starts[users] + first)[:, None] + torch.arange(shots + queries, device=device)]
        return Episode(self.table.take(rows[:, :shots]), self.table.take(rows[:, shots:], drawn[:, 1:] >= self.hide))


@dataclass(frozen=True)
class ListedUsers:
    """Each user once; nothing is random."""

    table: RatingTable
    chosen: Tensor  # [users, shots + queries]
    shape: TaskShape

    @property
    def spec(self) -> TaskSpec:
        return self.table.spec(listed=len(self.chosen))

    def sample(self, num_tasks: int, generator: torch.Generator) -> Episode:
        """The first `num_tasks` users, or all where there are fewer."""
        rows = self.chosen[:num_tasks]
        return Episode(self.table.take(rows[:, : self.shape.shots]), self.table.take(rows[:, self.shape.shots :]))
