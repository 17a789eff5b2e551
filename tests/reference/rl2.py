"""RL^2 on a bandit, trial by trial and pull by pull, on inputs as they are."""

from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.reference.plain import Theta
from tests.reference.worlds import uniform_numbers

SETTINGS: dict[str, Any] = {
    "memory": "gru",
    "hidden": 5,
    "keys": 2,
    "trials": 3,
    "discount": 0.9,
    "entropy": 0.2,
    "deviation": 0.5,
    "greedy": False,
}


def plain_loss(theta: Theta, trial: Any, skipped: int, counted: int, *, trials: int, **settings: Any) -> Tensor:
    """trial.latent: {"pays": [k]}. The first `skipped` pulls earn nothing."""
    played = [play(theta, trial, skipped + counted, trials, i) for i in range(trials)]
    earned = [[0.0 if t < skipped else reward for t, (_, reward) in enumerate(pulls)] for pulls in played]
    discount, last = settings["discount"], skipped + counted
    ahead = [[sum(discount ** (u - t) * r[u] for u in range(t, last)) for t in range(last)] for r in earned]
    terms = []
    for i, pulls in enumerate(played):
        for t, ((logits, arm), _) in enumerate(pulls):
            others = [ahead[j][t] for j in range(trials) if j != i]
            log = logits.log_softmax(-1)
            bonus = -sum(p.exp() * p for p in log)
            terms.append(-log[arm] * (ahead[i][t] - sum(others) / len(others)) - settings["entropy"] * bonus)
    return torch.stack(terms).mean()


def play(theta: Theta, trial: Any, pulls: int, trials: int, which: int) -> list[tuple[tuple[Tensor, int], float]]:
    """One trial of several: each pull's logits and arm, and what it paid."""
    pays, numbers = trial.latent["pays"].tolist(), uniform_numbers(int(trial.salt))
    arms, memory = len(pays), torch.zeros(SETTINGS["hidden"], dtype=torch.float64)
    last, reward, found = [0.0] * arms, 0.0, []
    for _ in range(pulls):
        begin, step = (list(islice(numbers, 2 * trials))[2 * which : 2 * which + 2] for _ in range(2))
        assert len(begin) == 2  # of the beginning of an episode, which a bandit has no use for
        inputs = torch.tensor([1.0, *last, reward, 1.0], dtype=torch.float64)
        memory = gru(theta["memory"], inputs, memory)
        logits = F.linear(memory, theta["readout"]["weight"], theta["readout"]["bias"])
        below = logits.softmax(-1).cumsum(-1)
        arm = next(i for i in range(arms) if below[i] >= step[1])
        reward = float(step[0] < pays[arm])
        last = [float(i == arm) for i in range(arms)]
        found.append(((logits, arm), reward))
    return found


def gru(w: dict[str, Tensor], x: Tensor, h: Tensor) -> Tensor:
    """https://docs.pytorch.org/docs/stable/generated/torch.nn.GRUCell.html"""
    size = len(h)
    into = w["weight_ih"] @ x + w["bias_ih"]
    from_h = w["weight_hh"] @ h + w["bias_hh"]
    r = torch.sigmoid(into[:size] + from_h[:size])
    z = torch.sigmoid(into[size : 2 * size] + from_h[size : 2 * size])
    n = torch.tanh(into[2 * size :] + r * from_h[2 * size :])
    return (1 - z) * n + z * h
