"""Recurrent layers from plain operations: the fused `nn.LSTM` and `nn.LSTMCell` do not work under vmap."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from metarun.core.types import Params

State = tuple[Tensor, ...]  # the output [..., hidden] comes first; of an LSTM the cell state [..., hidden] follows


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
