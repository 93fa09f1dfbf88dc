"""How large a network is when it ships: parameters, bytes of weights, multiply-accumulates."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from pbp_search.dendrites.forms import SparsePatches
from pbp_search.dendrites.record import called, evaluating, uncompiled
from pbp_search.errors import InputError

_MULTIPLY_ADD = (torch.ops.aten.addcmul, torch.ops.aten.addcmul_)  # elementwise; how U and W take part


def parameter_count(network: nn.Module) -> int:
    """How many parameters the folded network stores. Nothing in a dendritic network is scaffolding."""
    return sum(parameter.numel() for parameter in network.parameters())


def weight_bytes(network: nn.Module) -> int:
    """The bytes of a network's parameters and persistent buffers; what is tied counts once.

    An index of dendrites that see a few inputs counts in as few bytes as the number of inputs takes: torch computes
    with larger ones, a file need not.
    """
    indices = [part for part in network.modules() if isinstance(part, SparsePatches)]
    saved = sum(part.index.nbytes - part.index.numel() * index_bytes(part.patches.length) for part in indices)
    leaves = tree_leaves(network.state_dict(keep_vars=True))  # quantised layers have more than tensors there
    values = {id(value): value for value in leaves if isinstance(value, Tensor)}
    return sum(value.numel() * value.element_size() for value in values.values()) - saved


def index_bytes(values: int) -> int:
    """The fewest bytes, of 1, 2, 4 and 8, that tell so many values apart."""
    return next(size for size in (1, 2, 4, 8) if values <= 256**size)


def multiply_accumulates(network: nn.Module, inputs: Any) -> int:
    """The multiply-accumulates of a network for one sample; those of a folded network are the same.

    Products (Linear layers, convolutions, recurrent layers, attention) count by the formulas of torch's
    ``FlopCounterMode``, two operations each. It sees no elementwise work, of which dendrites have some: the products
    with U and W, and with the weights of dendrites of a small fan-in, are multiply-accumulates too, and count. So a
    Linear of F inputs and C outputs has C * (F * (D + 1) + D * (D + 1) / 2) with D dendrites. Biases, nonlinearities,
    normalisations and all other elementwise work count nowhere.

    Args:
        network: Run once, in evaluation mode, and put back. Torch's random stream stays where it was.
        inputs: Of some samples, on the network's device; a mapping or a tuple is its arguments. What one call does once
            is shared among its samples, and samples of different lengths count by their mean.

    Raises:
        InputError: The network's outputs hold no tensor with a row for each sample.
    """
    counter = _Counter()
    with ExitStack() as stack:
        for part in network.modules():
            if isinstance(part, SparsePatches):
                stack.enter_context(part.register_forward_hook(counter.add_sparse))
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(torch.no_grad())
        stack.enter_context(evaluating(network))
        stack.enter_context(uncompiled())
        stack.enter_context(_products_apart(network))
        stack.enter_context(counter)
        outputs = called(network, inputs)
    rows = next((len(leaf) for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.ndim), 0)
    if not rows:
        raise InputError("The network returned no tensor with a row for each sample: its work cannot be counted.")
    return round(counter.products / rows)


class _Counter(TorchDispatchMode):
    """Counts multiply-accumulates while it is entered: a ``FlopCounterMode`` without the compiler.

    That one loads it, which takes seconds in each process.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.products: float = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # a mode that shall be skipped loads the compiler to tell it so

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if hasattr(func, "decompose"):  # into operations that have a formula, perhaps
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        operation = getattr(func, "overloadpacket", func)
        if operation in flop_registry:
            self.products += flop_registry[operation](*args, **kwargs, out_val=result) / 2
        elif operation in _MULTIPLY_ADD:
            self.products += result.numel()
        return result

    def add_sparse(self, module: nn.Module, _: Any, z: Tensor) -> None:
        """The products of dendrites that see a few inputs each."""
        self.products += z.numel() * module.get_buffer("index").shape[1]


@contextmanager
def _products_apart(network: nn.Module) -> Iterator[None]:
    """Products are computed one by one: inside of fused kernels, for attention and LSTMs, none can be seen."""
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
        if any(isinstance(part, nn.RNNBase) for part in network.modules()):  # convolutions would take far longer
            for backend in (torch.backends.mkldnn, torch.backends.cudnn):
                stack.callback(setattr, backend, "enabled", backend.enabled)
                setattr(backend, "enabled", False)  # noqa: B010 - to type checkers it is no bool
        yield
