from typing import Any

import torch
from torch import Tensor

from tests.reference.matchingnet import lstm
from tests.reference.plain import Theta, features, loss

SETTINGS = {
    "hidden": 5,
    "rows": 6,
    "width": 3,
    "heads": 2,
    "decay": 0.9,
    "labels": "one_hot",
    "norm": "running",
}


def plain_loss(
    backbone_name: str,
    theta: Theta,
    episode: Any,
    *,
    hidden: int,
    rows: int,
    width: int,
    heads: int,
    decay: float,
    labels: str,
) -> Tensor:
    """Step by step, head by head, row by row; a row of the memory is a vector in a list."""
    assert labels == "one_hot"
    x, y = (torch.cat(fields) for fields in zip(*episode))
    z = features(backbone_name, theta, x)
    h = c = z.new_zeros(hidden)
    r, label = z.new_zeros(heads * width), z.new_zeros(int(y.max()) + 1)
    memory = [z.new_full((width,), 1e-6) for _ in range(rows)]
    read = [list(z.new_zeros(rows)) for _ in range(heads)]
    usage = [0.0] * rows
    logits = []
    for z_t, y_t in zip(z, y):
        h, c = lstm(theta["controller"], "", torch.cat([z_t, label, r]), h, c)
        made = theta["heads"]["weight"] @ h + theta["heads"]["bias"]
        free = sorted(range(rows), key=lambda i: usage[i])
        memory[free[0]] = torch.zeros_like(memory[0])
        usage = [decay * u for u in usage]
        keys = []
        for head, of_head in enumerate(made.split(2 * width + 1)):
            keys.append(of_head[:width].tanh())
            gate = 1 / (1 + (-of_head[-1]).exp())
            for i in range(rows):
                weight = gate * read[head][i] + (1 - gate if i == free[head] else 0)
                memory[i] = memory[i] + weight * of_head[width:-1].tanh()
                usage[i] += float(weight.detach())
        found = []
        for head, key in enumerate(keys):
            cosines = [key @ m / ((key @ key + 1e-12) * (m @ m + 1e-12)).sqrt() for m in memory]
            read[head] = list(torch.stack(cosines).softmax(0))
            found.append(torch.stack([weight * m for weight, m in zip(read[head], memory)]).sum(0))
            usage = [u + float(w.detach()) for u, w in zip(usage, read[head])]
        r = torch.cat(found)
        logits.append(theta["readout"]["weight"] @ torch.cat([h, r]) + theta["readout"]["bias"])
        label = torch.zeros_like(label)
        label[y_t] = 1
    return loss(torch.stack(logits), y)
