"""MAML for policies in the plane, move by move, with one hidden layer and normally distributed moves."""

import math
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from tests.reference.plain import Theta
from tests.reference.worlds import uniform_numbers

SETTINGS: dict[str, Any] = {
    "inner_lr": [0.3, 0.2],
    "inner_steps": 2,
    "first_order": False,
    "curvature": "ratio",
    "adapted": "all",
    "context_size": 3,
    "discount": 0.9,
    "exploration": 0.4,
    "deviation": 0.2,
    "greedy": False,
}
Moves = list[tuple[Tensor, Tensor, Tensor]]  # position, action and reward


def plain_loss(theta: Theta, trial: Any, horizon: int, inner: int, counted: int, **settings: Any) -> Tensor:
    """Learn from `inner` episodes a step, and judge by `counted` ones."""
    names = {"all": ["backbone", "head"], "head": ["head"], "context": ["context"]}[settings["adapted"]]
    phi = {c: theta[c] for c in ("backbone", "head")}
    phi["context"] = {"phi": torch.zeros(settings["context_size"], dtype=torch.float64, requires_grad=True)}
    for j in range(settings["inner_steps"]):
        rate = settings["inner_lr"][min(j, len(settings["inner_lr"]) - 1)]
        wide = torch.full((2,), settings["exploration"], dtype=torch.float64).log()
        w = {**theta, **phi, "policy": {"log_std": wide}}
        loss = judge(w, play(w, trial, horizon, inner, j, settings), settings)
        weights = [(c, n) for c in names for n in phi[c]]
        slopes = torch.autograd.grad(loss, [phi[c][n] for c, n in weights], create_graph=not settings["first_order"])
        stepped = {place: phi[place[0]][place[1]] - rate * slope for place, slope in zip(weights, slopes)}
        phi = {c: {n: stepped.get((c, n), p) for n, p in params.items()} for c, params in phi.items()}
    return judge({**theta, **phi}, play({**theta, **phi}, trial, horizon, counted, -1, settings), settings)


def network(w: Theta, position: Tensor) -> Tensor:
    """A context is more inputs, whose weights are the map's."""
    matrix, inputs = w["backbone"]["layers.0.weight"], position
    if "maps" in w:
        matrix, inputs = torch.cat([matrix, w["maps"]["layers.0.bias"]], 1), torch.cat([position, w["context"]["phi"]])
    hidden = torch.relu(matrix @ inputs + w["backbone"]["layers.0.bias"])
    return w["head"]["weight"] @ hidden + w["head"]["bias"]


def deviation(w: Theta) -> Tensor:
    least = torch.tensor(math.log(0.01), dtype=torch.float64)
    return torch.stack([max(p, least) for p in w["policy"]["log_std"]]).exp()


def play(w: Theta, trial: Any, horizon: int, episodes: int, purpose: int, settings: dict[str, Any]) -> list[Moves]:
    """The episodes, move by move; without gradients unless the path's are wanted."""
    numbers = uniform_numbers(int(trial.salt), purpose)
    list(islice(numbers, 2 * episodes))  # of the beginning
    chances = [torch.tensor(list(islice(numbers, 2 * episodes)), dtype=torch.float64) for _ in range(horizon)]
    with torch.set_grad_enabled(settings["curvature"] == "path"):
        return [episode(w, trial, [chance[2 * e : 2 * e + 2] for chance in chances]) for e in range(episodes)]


def episode(w: Theta, trial: Any, chances: list[Tensor]) -> Moves:
    position, moves = torch.zeros(2, dtype=torch.float64), []
    for chance in chances:
        noise = math.sqrt(2) * torch.erfinv(2 * chance - 1)
        action = network(w, position) + deviation(w) * noise
        after = position + torch.stack([a.clamp(-0.1, 0.1) for a in action])
        moves.append((position, action, -((after - trial.latent["goal"]) ** 2).sum().sqrt()))
        position = after
    return moves


def judge(w: Theta, played: list[Moves], settings: dict[str, Any]) -> Tensor:
    """The path's objective, minus the mean reward; or that of ratios of densities, each times its advantage."""
    horizon = len(played[0])
    if settings["curvature"] == "path":
        return -torch.stack([reward for moves in played for _, _, reward in moves]).mean()
    rows, ahead = [], []
    for moves in played:
        for t, (position, _, _) in enumerate(moves):
            time = t / (horizon - 1)
            rows.append([*position.tolist(), *(x * x for x in position.tolist()), 1.0, time, time**2, time**3])
            ahead.append(sum(settings["discount"] ** (u - t) * float(moves[u][2]) for u in range(t, horizon)))
    x, y = torch.tensor(rows).double(), torch.tensor(ahead).double()
    x = x / ((x**2).mean(0).sqrt() + 1e-6)
    ridge = torch.cat([x, math.sqrt(1e-4 * len(x)) * torch.eye(x.shape[1]).double()])
    fit = x @ torch.linalg.lstsq(ridge, torch.cat([y, y.new_zeros(x.shape[1])])[:, None]).solution[:, 0]
    std, terms = deviation(w), []
    for (position, action, _), gain in zip([move for moves in played for move in moves], y - fit):
        density = torch.distributions.Normal(network(w, position), std).log_prob(action).sum().exp()
        terms.append(-density / density.detach() * gain)
    return torch.stack(terms).mean()
