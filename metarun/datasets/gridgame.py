"""A small game whose rules are hidden: what the controls do, which key is the right one, and which door it opens."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metarun.config.registry import register
from metarun.config.schema import Count
from metarun.config.traits import DatasetTraits
from metarun.core.control import Reflex
from metarun.core.objectives import one_hot
from metarun.core.types import Agent, Params, Split, TaskShape
from metarun.datasets.sampling.trials import Simulated, Trials

ROWS, COLUMNS = 3, 3  # a key in each cell of the first column, a door in each of the last one
FIRST = (1, 1)  # where an episode begins
CONTROLS = 8  # ways in which they can be turned and mirrored
PAIRS = ROWS * ROWS  # of a key and a door
SHARES = {"test": (0, 1), "val": (1, 2), "train": (2, PAIRS)}  # of the pairs, others for each way of the controls


@register("dataset", "gridgame", DatasetTraits(kind="control", rules=("optimum", "random")))
@dataclass(frozen=True)
class GridGame(Simulated):
    """A board of 3 by 3 cells: fetch the right key on the left, and carry it to the right door on the right.

    Hidden are what the four controls do (turned or mirrored, 8 ways), the key (3) and the door (3): 72 rules, of which
    56 are for training, 8 for validation and 8 for the test. A key is taken by walking over it and lays down the one
    before; the right door shows itself to who stands before it. The reward is 1 when the game is solved, so that a
    return is the share of games that are.
    """

    horizon: Count
    device: torch.device

    def tasks(self, split: Split, shape: TaskShape) -> Trials:
        return replace(super().tasks(split, shape), world=Game(self.horizon, split))


class Play(NamedTuple):
    cell: Tensor  # [P] row * COLUMNS + column
    key: Tensor  # [P] 0: none, else its row + 1
    solved: Tensor  # [P] whether


@dataclass(frozen=True)
class Game:
    """The game with the rules of a split."""

    horizon: int
    split: Split

    observed = ROWS * COLUMNS + ROWS + 3
    actions = 4
    discrete = True
    chances = 0

    def latent(self, tasks: int, generator: torch.Generator) -> Params:
        """Drawn for every task: moves [T, 4, 2] of the controls, and key and door [T], the rows where they are."""
        way = torch.randint(CONTROLS, (tasks,), generator=generator, device=generator.device)
        share = torch.randint(*SHARES[self.split], (tasks,), generator=generator, device=generator.device)
        pair = (way + share) % PAIRS
        parts = {"moves": turn_controls(way), "key": pair // ROWS, "door": pair % ROWS}
        return {name: part.to(torch.get_default_dtype()) for name, part in parts.items()}

    def reset(self, latent: Params, chance: Tensor) -> Play:
        nothing = torch.zeros(len(chance), dtype=torch.long, device=chance.device)
        return Play(nothing + FIRST[0] * COLUMNS + FIRST[1], nothing, nothing > 0)

    def observe(self, latent: Params, state: Play) -> Tensor:
        """The cell, the key in hand, whether this is the right door, and whether the game is solved: [P, 15]."""
        marks = torch.stack([self.is_door(latent, state.cell), state.solved], -1)
        return torch.cat([one_hot(state.cell, ROWS * COLUMNS), one_hot(state.key, ROWS + 1), marks], -1).to(
            latent["moves"].dtype
        )

    def is_door(self, latent: Params, cell: Tensor) -> Tensor:
        """Whether the right door is at the cell."""
        return (cell % COLUMNS == COLUMNS - 1) & (cell // COLUMNS == latent["door"])

    def step(self, latent: Params, state: Play, action: Tensor, chance: Tensor) -> tuple[Play, Tensor]:
        """action: [P], a control. A wall stops who walks into it."""
        moves = latent["moves"][action].long()  # [P, 2]
        row = (state.cell // COLUMNS + moves[:, 0]).clamp(0, ROWS - 1)
        column = (state.cell % COLUMNS + moves[:, 1]).clamp(0, COLUMNS - 1)
        cell, key = row * COLUMNS + column, torch.where(column == 0, row + 1, state.key)
        won = self.is_door(latent, cell) & (key == latent["key"] + 1) & ~state.solved
        after = Play(cell, key, state.solved | won)
        stays = Play(*(torch.where(state.solved, old, new) for old, new in zip(state, after)))
        return stays, won.to(latent["moves"].dtype)

    def draw(self, axes: Any, latent: Params, states: Play) -> None:
        """The board: keys on the left, doors on the right, green where they are the right ones, and the player."""
        for row in range(ROWS):
            for column, right, mark in ((0, latent["key"], "P"), (COLUMNS - 1, latent["door"], "s")):
                axes.plot(column, row, mark, markersize=22, color="tab:green" if row == right else "0.8")
        across, down = states.cell % COLUMNS, states.cell // COLUMNS
        axes.plot(across.numpy(), down.numpy(), linewidth=2)
        axes.plot(across[-1], down[-1], "*" if states.solved[-1] else "o", markersize=14, color="tab:red")
        axes.set(xlim=(-0.5, COLUMNS - 0.5), ylim=(ROWS - 0.5, -0.5))

    def rule(self, name: str, latent: Params, episodes: int) -> Agent:
        """The shortest way for who knows the rules, or any control."""
        if name == "random":
            return Reflex(lambda observation, chance: (chance[:, 0] * self.actions).long(), chances=1)
        distance = self.search(latent)  # [cells * keys, 4]

        def react(observation: Tensor, chance: Tensor) -> Tensor:
            cell, key, _ = observation.split([ROWS * COLUMNS, ROWS + 1, 2], -1)
            return distance[cell.argmax(-1) * (ROWS + 1) + key.argmax(-1)].argmin(-1)

        return Reflex(react)

    def search(self, latent: Params) -> Tensor:
        """How many steps it takes to solve the game from each cell with each key, by first choice: [cells * keys, 4].

        Breadth first: after n sweeps all that can be solved in n steps is known.
        """
        places = torch.arange(ROWS * COLUMNS * (ROWS + 1), device=latent["key"].device)
        state = Play(places // (ROWS + 1), places % (ROWS + 1), places < 0)
        steps = [self.step(latent, state, torch.full_like(places, choice), places) for choice in range(self.actions)]
        following = torch.stack([after.cell * (ROWS + 1) + after.key for after, _ in steps], -1)
        won = torch.stack([reward for _, reward in steps], -1) > 0
        distance = torch.where(won, 1.0, torch.inf)
        for _ in range(len(places)):
            distance = torch.where(won, 1.0, 1 + distance.amin(-1)[following])
        return distance


def turn_controls(way: Tensor) -> Tensor:
    """What choices 0 .. 3 do, in (rows, columns), in each of the ways [T] to turn and mirror a compass: [T, 4, 2]."""
    along, across, none = 1 - 2 * (way % 2), 1 - 2 * (way // 2 % 2), 0 * way
    moves = torch.stack([-along, none, along, none, none, -across, none, across], -1).unflatten(-1, (4, 2))
    return torch.where((way // 4 > 0)[:, None, None], moves.flip(-1), moves)
