"""What dendrites see if it is not their module's own input: the network's input, or what an earlier module returns.

Fahlman and Lebiere's cascade lets every unit see all inputs of the network; on narrow networks, dendrites on the head
that see the input by such a skip are the strongest form.
"""

from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from pbp_search.errors import UnsupportedModuleError

INPUT = "input"
"""Names what the network is given."""


class Seen:
    """A tensor of the pass that is under way, for dendrites behind it.

    Attributes:
        name: ``input``, or the name of the module that returns it.
        features: F, its numbers for each sample, the last time; None before the first pass.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.features: int | None = None
        self._value: Tensor | None = None

    def watch(self, network: nn.Module) -> None:
        """Look at every pass of a network from now on."""
        if self.name == INPUT:
            network.register_forward_pre_hook(self._before, with_kwargs=True)
        else:
            network.get_submodule(self.name).register_forward_hook(self._after)
        network.register_forward_hook(self._forget, always_call=True)

    def value(self) -> Tensor:
        """The tensor, shape (N, F).

        Raises:
            UnsupportedModuleError: It is not there: its module comes later in the pass, or took no part.
        """
        if self._value is None:
            raise UnsupportedModuleError(
                f"Dendrites see the output of {self.name!r}, but that has not been called yet when they need it: name "
                f"a module that comes before them, or {INPUT!r}, and call the network as a whole, without activation "
                "checkpointing."
            )
        return self._value

    def _before(self, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._keep((args, kwargs))

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._keep(output)

    def _keep(self, values: Any) -> None:
        tensors = [leaf for leaf in tree_flatten(values)[0] if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        if not tensors or tensors[0].ndim < 2:
            raise UnsupportedModuleError(
                f"Dendrites see {self.name!r}, which holds no tensor of numbers for each sample: name another module."
            )
        self._value = tensors[0].flatten(1)
        self.features = self._value.shape[1]

    def _forget(self, network: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._value = None
