"""Exponential moving average of the weights, kept by name."""

from contextlib import contextmanager

import torch
from torch import nn


class EMA:
    """Average of a module's parameters in float32; ramps up as (1 + n) / (10 + n) until it reaches `decay`."""

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self.updates = 0
        self.shadow = {name: p.detach().float().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        parameters = dict(module.named_parameters())
        torch._foreach_lerp_(
            list(self.shadow.values()), [parameters[name].detach().float() for name in self.shadow], 1 - decay
        )
        self.updates += 1

    @contextmanager
    def applied(self, module: nn.Module):
        """Inside the context the module holds the averaged weights; afterwards its own again."""
        own = {name: p.detach().clone() for name, p in module.named_parameters()}
        self._write(module, self.shadow)
        try:
            yield module
        finally:
            self._write(module, own)

    @staticmethod
    @torch.no_grad()
    def _write(module: nn.Module, values: dict) -> None:
        for name, parameter in module.named_parameters():
            parameter.copy_(values[name])

    def state_dict(self) -> dict:
        return dict(self.shadow)

    def load_state_dict(self, state: dict, updates: int) -> None:
        for name, value in self.shadow.items():
            value.copy_(state[name])
        self.updates = updates
