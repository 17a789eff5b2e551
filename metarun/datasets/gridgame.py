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
from metarun.core.seeding import mix
from metarun.core.types import Agent, Params, Split, TaskShape
from metarun.datasets.sampling.trials import Simulated, Trials

ROWS, COLUMNS = 3, 3  # a key in each cell of the first column, a door in each of the last one
FIRST = (1, 1)  # where an episode begins
CONTROLS = 24  # orders of the four
RULES = CONTROLS * ROWS * ROWS  # of controls, key and door
SHARES = {"test": (0, 44), "val": (44, 66), "train": (66, RULES)}  # of the rules in the order of a hash


@register("dataset", "gridgame", DatasetTraits(kind="control", rules=("optimum", "random")))
@dataclass(frozen=True)
class GridGame(Simulated):
    """A board of 3 by 3 cells: fetch the right key on the left, and carry it to the right door on the right.

    Hidden are which control goes where (24 ways), the key (3) and the door (3): 216 rules, of which a hash leaves 150
    for training, 22 for validation and 44 for the test. A key is taken by walking over it and lays down
    the one before. The right key shows itself to who holds it, the right door to who stands before it, and a player
    sees which way the last step went. The reward is 1 when the game is solved, so that a return is the share of games
    that are.
    """

    horizon: Count
    device: torch.device

    def tasks(self, split: Split, shape: TaskShape) -> Trials:
        return replace(super().tasks(split, shape), world=Game(self.horizon, split))


class Play(NamedTuple):
    cell: Tensor  # [P] row * COLUMNS + column
    key: Tensor  # [P] 0: none, else its row + 1
    solved: Tensor  # [P] whether
    moved: Tensor  # [P, 2] rows and columns, by the last step


@dataclass(frozen=True)
class Game:
    """The game with the rules of a split."""

    horizon: int
    split: Split

    observed = ROWS * COLUMNS + ROWS + 1 + 3 + 4
    actions = 4
    discrete = True
    chances = 0

    def latent(self, tasks: int, generator: torch.Generator) -> Params:
        """Drawn for every task: moves [T, 4, 2] of the controls, and key and door [T], the rows where they are."""
        rules = mix(torch.arange(RULES, device=generator.device)).argsort()
        rule = rules[torch.randint(*SHARES[self.split], (tasks,), generator=generator, device=generator.device)]
        parts = {"moves": order_controls(rule // ROWS**2), "key": rule // ROWS % ROWS, "door": rule % ROWS}
        return {name: part.to(torch.get_default_dtype()) for name, part in parts.items()}

    def reset(self, latent: Params, chance: Tensor) -> Play:
        nothing = torch.zeros(len(chance), dtype=torch.long, device=chance.device)
        return Play(nothing + FIRST[0] * COLUMNS + FIRST[1], nothing, nothing > 0, nothing[:, None].expand(-1, 2))

    def observe(self, latent: Params, state: Play) -> Tensor:
        """The cell, the key in hand, whether it is the right one, whether this is the right door, whether the game is
        solved, and how far the last step went down, right, up and left: [P, 20].
        """
        marks = [self.is_key(latent, state.key), self.is_door(latent, state.cell), state.solved]
        moved = torch.cat([state.moved, -state.moved], -1).clamp(min=0)
        cell, key = one_hot(state.cell, ROWS * COLUMNS), one_hot(state.key, ROWS + 1)
        return torch.cat([cell, key, torch.stack(marks, -1), moved], -1).to(latent["moves"].dtype)

    def is_key(self, latent: Params, key: Tensor) -> Tensor:
        """Whether this key in hand is the right one."""
        return key == latent["key"] + 1

    def is_door(self, latent: Params, cell: Tensor) -> Tensor:
        """Whether the right door is at the cell."""
        return (cell % COLUMNS == COLUMNS - 1) & (cell // COLUMNS == latent["door"])

    def step(self, latent: Params, state: Play, action: Tensor, chance: Tensor) -> tuple[Play, Tensor]:
        """action: [P], a control. A wall stops who walks into it."""
        moves = latent["moves"][action].long()  # [P, 2]
        row = (state.cell // COLUMNS + moves[:, 0]).clamp(0, ROWS - 1)
        column = (state.cell % COLUMNS + moves[:, 1]).clamp(0, COLUMNS - 1)
        cell, key = row * COLUMNS + column, torch.where(column == 0, row + 1, state.key)
        moved = torch.stack([row - state.cell // COLUMNS, column - state.cell % COLUMNS], -1)
        won = self.is_door(latent, cell) & self.is_key(latent, key) & ~state.solved
        after = Play(cell, key, state.solved | won, moved)
        ends = (state.solved, state.solved, state.solved, state.solved[:, None])
        stays = Play(*(torch.where(end, old, new) for end, old, new in zip(ends, state, after)))
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
            cell, key = observation[:, : ROWS * COLUMNS], observation[:, ROWS * COLUMNS :][:, : ROWS + 1]
            return distance[cell.argmax(-1) * (ROWS + 1) + key.argmax(-1)].argmin(-1)

        return Reflex(react)

    def search(self, latent: Params) -> Tensor:
        """How many steps it takes to solve the game from each cell with each key, by first choice: [cells * keys, 4].

        Breadth first: after n sweeps all that can be solved in n steps is known.
        """
        places = torch.arange(ROWS * COLUMNS * (ROWS + 1), device=latent["key"].device)
        state = Play(places // (ROWS + 1), places % (ROWS + 1), places < 0, places[:, None].expand(-1, 2))
        steps = [self.step(latent, state, torch.full_like(places, choice), places) for choice in range(self.actions)]
        following = torch.stack([after.cell * (ROWS + 1) + after.key for after, _ in steps], -1)
        won = torch.stack([reward for _, reward in steps], -1) > 0
        distance = torch.where(won, 1.0, torch.inf)
        for _ in range(len(places)):
            distance = torch.where(won, 1.0, 1 + distance.amin(-1)[following])
        return distance


def order_controls(way: Tensor) -> Tensor:
    """The moves (rows, columns) of choices 0 .. 3, in the order of number 0 .. 23 (by its Lehmer code): [T, 4, 2]."""
    order = [way // 6, way // 2 % 3, way % 2, 0 * way]
    for i in (2, 1, 0):
        order[i + 1 :] = [later + (later >= order[i]) for later in order[i + 1 :]]
    direction = torch.stack(order, -1)
    sign = 1 - 2 * (direction % 2)
    return torch.stack([torch.where(direction < 2, sign, 0), torch.where(direction < 2, 0, sign)], -1)
