"""Recurrent layers from plain operations: the fused `nn.LSTM` and `nn.LSTMCell` do not work under vmap."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from metarun.core.types import Params

State = tuple[Tensor, ...]  # the output [..., hidden] comes first; of an LSTM the cell state [..., hidden] follows


VALUES = 4  # numbers that a ledger keeps for each key and action, beside their count
NOT_DEAD = 1e-3  # keeps a key of ReLUs that are all 0 from being none


class _GatedCell(nn.Module):
    """Names, shapes and initial weights of PyTorch's cells with `gates` times `hidden` rows."""

    def __init__(self, gates: int, inputs: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.weight_ih = nn.Parameter(torch.empty(gates * hidden, inputs))
        self.weight_hh = nn.Parameter(torch.empty(gates * hidden, hidden))
        self.bias_ih = nn.Parameter(torch.empty(gates * hidden))
        self.bias_hh = nn.Parameter(torch.empty(gates * hidden))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(hidden**-0.5), hidden**-0.5)


class LSTMCell(_GatedCell):
    """One step of a long short-term memory, with the weights of `nn.LSTMCell`."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__(4, inputs, hidden)

    def start(self, x: Tensor) -> State:
        """The state before the first step, all zeros, for inputs [..., inputs]."""
        zeros = x.new_zeros(*x.shape[:-1], self.hidden)
        return zeros, zeros

    def forward(self, x: Tensor, state: State) -> State:
        """x: [..., inputs]."""
        h, c = state
        gates = F.linear(x, self.weight_ih, self.bias_ih) + F.linear(h, self.weight_hh, self.bias_hh)
        enter, forget, proposal, leave = gates.chunk(4, dim=-1)
        c = forget.sigmoid() * c + enter.sigmoid() * proposal.tanh()
        return leave.sigmoid() * c.tanh(), c


class GRUCell(_GatedCell):
    """One step of a gated recurrent unit, with the weights of `nn.GRUCell`."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__(3, inputs, hidden)

    def start(self, x: Tensor) -> State:
        """The state before the first step, all zeros, for inputs [..., inputs]."""
        return (x.new_zeros(*x.shape[:-1], self.hidden),)

    def forward(self, x: Tensor, state: State) -> State:
        """x: [..., inputs]."""
        (h,) = state
        new = F.linear(x, self.weight_ih, self.bias_ih).chunk(3, dim=-1)
        old = F.linear(h, self.weight_hh, self.bias_hh).chunk(3, dim=-1)
        reset, keep = (new[0] + old[0]).sigmoid(), (new[1] + old[1]).sigmoid()
        return (torch.lerp((new[2] + reset * old[2]).tanh(), h, keep),)


class FastWeights(nn.Module):
    """One step of an associative memory: what comes after an input is stored under that input's key, and read again by
    inputs whose keys are like it.

    Fast weights of outer products are by Schmidhuber 1992 (https://doi.org/10.1162/neco.1992.4.1.131); that a value
    comes one step after its key is ours, for rewards come so. The state is the output [..., hidden], the memory
    [..., keys, keys] and the last key [..., keys].
    """

    def __init__(self, inputs: int, hidden: int, keys: int) -> None:
        super().__init__()
        self.hidden, self.keys = hidden, keys
        self.key, self.value = nn.Linear(inputs, keys), nn.Linear(inputs, keys)
        self.output = nn.Linear(inputs + keys, hidden)

    def start(self, x: Tensor) -> State:
        """The state before the first step, all zeros, for inputs [..., inputs]."""
        sizes = ((self.hidden,), (self.keys, self.keys), (self.keys,))
        return tuple(x.new_zeros(*x.shape[:-1], *size) for size in sizes)

    def forward(self, x: Tensor, state: State) -> State:
        """x: [..., inputs]."""
        _, memory, last = state
        memory = memory + F.relu(self.value(x))[..., :, None] * last[..., None, :]
        key = F.normalize(F.relu(self.key(x)), dim=-1)
        found = (memory @ key[..., None])[..., 0]
        return F.relu(self.output(torch.cat([x, found], -1))), memory, key


class Ledger(nn.Module):
    """One step of a memory with an account of each action: what followed it on average, and how often it was taken.

    Observations that are alike by their keys share an account, as in `FastWeights`. All actions are treated alike, so
    the weights do not depend on their number. What follows an action is read from its reward and, within an episode,
    from what the accounts say of the next observation, so that worth spreads backwards. This is ours.

    Inputs [..., observed + actions + 2] are an observation, the last action, its reward, and whether an episode begins.
    The state is the outputs [..., actions], the accounts [..., actions * (VALUES + 1), keys] and the last key.
    """

    def __init__(self, observed: int, actions: int, hidden: int, keys: int) -> None:
        super().__init__()
        self.sizes, self.keys = (observed, actions, 1, 1), keys
        self.key = nn.Linear(observed + 1, keys)
        self.value = nn.Linear(observed + 2 + 2 * hidden, VALUES)
        self.account, self.place = nn.Linear(VALUES + 2, hidden, bias=False), nn.Linear(observed + 1, hidden)
        self.own, self.all = nn.Linear(hidden, hidden, bias=False), nn.Linear(2 * hidden, hidden)
        self.output = nn.Linear(hidden, 1)

    def start(self, x: Tensor) -> State:
        """The state before the first step, all zeros, for inputs [..., inputs]."""
        actions = self.sizes[1]
        sizes = ((actions,), (actions * (VALUES + 1), self.keys), (self.keys,))
        return tuple(x.new_zeros(*x.shape[:-1], *size) for size in sizes)

    def forward(self, x: Tensor, state: State) -> State:
        """x: [..., inputs]."""
        observation, action, reward, begins = x.split(self.sizes, dim=-1)
        _, accounts, last = state
        place = torch.cat([observation, begins], -1)
        key = F.normalize(F.relu(self.key(place)) + NOT_DEAD, dim=-1)
        found = (accounts @ key[..., None])[..., 0].unflatten(-1, (-1, VALUES + 1))  # [..., actions, VALUES + 1]
        ahead = self.compare(place, found)[1] * (1 - begins)
        value = torch.cat([self.value(torch.cat([reward, place, ahead], -1)), torch.ones_like(reward)], -1)
        entry = action[..., :, None] * value[..., None, :]
        accounts = accounts + entry.flatten(-2)[..., :, None] * last[..., None, :]
        found = found + entry * (last * key).sum(-1)[..., None, None]
        each, together = self.compare(place, found)
        outputs = self.output(F.relu(self.own(each) + self.all(together)[..., None, :]))
        return outputs[..., 0], accounts, key

    def compare(self, place: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
        """Features of each account [..., actions, hidden], and of all together [..., 2 * hidden]."""
        total, count = found.split([VALUES, 1], dim=-1)
        rare = 1 / (count + 1)
        account = torch.cat([total * rare, rare, count.log1p()], -1)
        each = F.relu(self.account(account) + self.place(place)[..., None, :])
        return each, torch.cat([each.mean(-2), each.amax(-2)], -1)


def step_cell(cell: nn.Module, params: Params, x: Tensor, state: State) -> State:
    """One step of `cell` with `params` in place of its own weights. x: [..., inputs]."""
    following: State = functional_call(cell, params, (x, state))
    return following


def read(cell: LSTMCell, x: Tensor) -> Tensor:
    """Outputs after each step of a sequence: x [steps, ..., inputs] -> [steps, ..., hidden]."""
    state, outputs = cell.start(x[0]), []
    for step in x:
        state = cell(step, state)
        outputs.append(state[0])
    return torch.stack(outputs)


class BiLSTM(nn.Module):
    """Two cells that read a sequence from either end."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.onward, self.back = LSTMCell(inputs, hidden), LSTMCell(inputs, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """x: [steps, ..., inputs] -> outputs of both directions at each step: [2, steps, ..., hidden]."""
        return torch.stack([read(self.onward, x), read(self.back, x.flip(0)).flip(0)])
