"""Pruning: the smallest weights of a network go, step by step, and the rest trains on.

Magnitude pruning over the whole network with fine-tuning after each step (S. Han et al., Learning both Weights and
Connections for Efficient Neural Networks, NeurIPS 2015; what goes is chosen by torch.nn.utils.prune). A weight that
is pruned is exactly zero, and stays so: the weights themselves say which ones are left. Nothing else of the network
changes, so it is kept, grown and folded like any other.

Biases, and the weights of dendrites' connections, are one number for each neuron, and are not pruned.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from pbp_search.dendrites import Dendrite, Dendritic, parameter_count, weight_bytes
from pbp_search.dendrites.sizes import index_bytes


def prunable(network: nn.Module) -> list[nn.Parameter]:
    """The weights that pruning chooses from: all with two or more dimensions, those of frozen dendrites too."""
    connections = {id(module.outgoing) for module in network.modules() if isinstance(module, Dendritic)}
    connections |= {id(module.incoming) for module in network.modules() if isinstance(module, Dendrite)}
    return [weight for weight in network.parameters() if weight.ndim > 1 and id(weight) not in connections]


def left(network: nn.Module) -> int:
    """How many of the prunable weights have not been pruned."""
    return sum(int(weight.count_nonzero()) for weight in prunable(network))


def left_after(weights: int, share: float) -> int:
    """How many weights a step leaves."""
    return weights - round(share * weights)


@torch.no_grad()
def prune(network: nn.Module, share: float) -> None:
    """Remove the smallest of the weights that are left, of all layers together.

    Args:
        network: Pruned in place.
        share: Of the weights that are left; at least 0 and less than 1.
    """
    weights = prunable(network)
    together = torch.cat([weight.flatten() for weight in weights])
    remaining = together.nonzero().squeeze(1)
    if not len(remaining):
        return
    kept = together[remaining]
    mask = torch_prune.L1Unstructured(share).compute_mask(kept, torch.ones_like(kept))
    together[remaining] = kept * mask
    for weight, part in zip(weights, together.split([weight.numel() for weight in weights]), strict=True):
        weight.copy_(part.view_as(weight))


@contextmanager
def held(network: nn.Module) -> Iterator[None]:
    """While it lasts, pruned weights take no gradient: no optimiser that begins here moves them from zero."""
    trained = [weight for weight in prunable(network) if weight.requires_grad]
    handles = [weight.register_hook((weight.detach() != 0).mul) for weight in trained]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def stored_parameters(network: nn.Module) -> int:
    """How many numbers a pruned network stores: pruned weights are not."""
    weights = prunable(network)
    return parameter_count(network) - sum(weight.numel() for weight in weights) + left(network)


def stored_bytes(network: nn.Module) -> int:
    """The bytes of a pruned network's parameters and buffers, with what says where the weights that are left are.

    Each layer has the smallest of three forms: dense; a bit for each weight; or compressed rows, whose weights have the
    number of their column in as few bytes as that takes, and whose rows have their ends in 4 bytes each.
    """
    weights = prunable(network)
    dense = sum(weight.numel() * weight.element_size() for weight in weights)
    return weight_bytes(network) - dense + sum(_smallest_form(weight) for weight in weights)


def _smallest_form(weight: Tensor) -> int:
    count, rows = weight.numel(), len(weight)
    number, columns = weight.element_size(), count // max(1, rows)
    nonzero = int(weight.count_nonzero())
    bitmap = nonzero * number + math.ceil(count / 8)
    compressed = nonzero * (number + index_bytes(columns)) + 4 * rows
    return min(count * number, bitmap, compressed)
