"""torch.compile by blocks."""

from torch import nn


def compile_blocks(module: nn.Module, **options) -> None:
    """torch.compile every block (entry of an nn.ModuleList) by itself; `options` are torch.compile's.

    Blocks that are alike share one compilation, which takes seconds where the network as a whole takes a minute.
    """
    for stack in module.modules():
        if isinstance(stack, nn.ModuleList):
            for block in stack:
                block.compile(**options)
