"""Pruning: the smallest weights of a network go, step by step, and the rest trains on.

Magnitude pruning over the whole network with fine-tuning after each step (S. Han et al., Learning both Weights and
Connections for Efficient Neural Networks, NeurIPS 2015; what goes is chosen by torch.nn.utils.prune). A weight that
is pruned is exactly zero, and stays so: the weights themselves say which ones are left. Nothing else of the network
changes, so it is kept, grown and folded like any other.

Biases, and the weights of dendrites' connections, are one number for each neuron, and are not pruned. Dendrites' own
weights are compared with all others as they are, though their inputs may be scaled otherwise, and where they are frozen
they do not train on; whether that costs accuracy is for the front to say.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune
from torch.nn.utils.parametrize import ParametrizationList

from pbp_search.dendrites import Adam, Dendrite, Dendritic, parameter_count, weight_bytes
from pbp_search.dendrites.attach import NORMALISATIONS, is_computed
from pbp_search.dendrites.forms import SparsePatches
from pbp_search.dendrites.sizes import index_bytes


def prunable(network: nn.Module) -> list[nn.Parameter]:
    """The weights that pruning chooses from, those of frozen dendrites too.

    Of torch's own layers, normalisations apart, all with two or more dimensions; of other modules those with two
    dimensions larger than one: scales and biases are often kept in shapes such as (C, 1, 1). Weights that are computed
    from others (parametrizations, weight_norm) are left alone, as are those that are not floating point.
    """
    found: dict[int, nn.Parameter] = {}
    for module in network.modules():
        if isinstance(module, (*NORMALISATIONS, ParametrizationList)) or is_computed(module):
            continue
        connections = {"incoming", "outgoing"} if isinstance(module, (Dendrite, Dendritic)) else set()
        layer = isinstance(module, SparsePatches) or type(module).__module__.startswith("torch.nn.modules")
        for name, weight in module.named_parameters(recurse=False):
            dimensions = weight.ndim if layer else sum(length > 1 for length in weight.shape)
            numbers = weight.is_floating_point() or weight.is_complex()
            if dimensions > 1 and numbers and name not in connections:
                found[id(weight)] = weight
    return list(found.values())


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
    if not weights:
        return
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
def held(network: nn.Module, optimiser: Adam | torch.optim.Optimizer) -> Iterator[None]:
    """While it lasts, pruned weights stay zero.

    They take no gradient, so that clipping and moments do not know of them; and what a step makes of them all the same
    (Muon's mixes rows), is undone.
    """
    weights = prunable(network)
    masks: list[Tensor] = [weight.detach() != 0 for weight in weights]

    @torch.no_grad()
    def undo(*_: Any) -> None:
        for weight, mask in zip(weights, masks, strict=True):
            weight.mul_(mask)

    trained = [(weight, mask) for weight, mask in zip(weights, masks, strict=True) if weight.requires_grad]
    handles = [weight.register_hook(mask.mul) for weight, mask in trained]
    if isinstance(optimiser, torch.optim.Optimizer):  # ours follows the gradient
        handles.append(optimiser.register_step_post_hook(undo))
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
    number of their column in as few bytes as that takes, and whose rows have their ends in 4 bytes each. Dendrites that
    see a few inputs have an index beside the first two; in compressed rows the columns are that.
    """
    small = {id(part.weight): part for part in network.modules() if isinstance(part, SparsePatches)}
    total = weight_bytes(network)
    for weight in prunable(network):
        part = small.get(id(weight))
        if part is None:
            total += _smallest_form(weight, weight.numel() // max(1, len(weight))) - weight.nbytes
        else:
            index = part.index.numel() * index_bytes(part.patches.length)
            total += _smallest_form(weight, part.patches.length, index) - weight.nbytes - index
    return total


def _smallest_form(weight: Tensor, columns: int, index: int = 0) -> int:
    count, rows, number = weight.numel(), len(weight), weight.element_size()
    nonzero = int(weight.count_nonzero())
    bitmap = nonzero * number + math.ceil(count / 8)
    compressed = nonzero * (number + index_bytes(columns)) + 4 * rows
    return min(weight.nbytes + index, bitmap + index, compressed)
