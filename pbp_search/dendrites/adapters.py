"""Where the neurons of a module are: which tensor of its output, and which axis of that.

Layers that return one tensor need nothing more than their axis. For a module of your own whose output is a tuple, a
dict or a dataclass, subclass :class:`Adapter`::

    class Logits(Adapter):
        axis = -1

        def channels(self, module):
            return module.head.out_features

        def neurons(self, output):
            return output["logits"]

        def replace(self, output, neurons):
            return {**output, "logits": neurons}

    attach(network, adapters={"decoder": Logits()})
"""

from typing import Any

from torch import Tensor, cat, nn
from torch.nn.utils.rnn import PackedSequence

_CONVOLUTIONS: dict[type[nn.Module], int] = {
    nn.Conv1d: 1,
    nn.Conv2d: 2,
    nn.Conv3d: 3,
    nn.ConvTranspose1d: 1,
    nn.ConvTranspose2d: 2,
    nn.ConvTranspose3d: 3,
}


class Adapter:
    """A module whose output is one tensor of neurons.

    Attributes:
        axis: The axis of the C channels in the tensor of neurons, counted from its end: negative.
        samples: The axis of the N samples in it, counted from its beginning.
    """

    axis: int = -1
    samples: int = 0

    def rows(self, neurons: Tensor) -> Tensor:
        """The tensor of neurons, or one of its shape, as (samples, positions, C)."""
        samples = self.samples if neurons.ndim > 2 else 0
        moved = neurons.movedim(self.axis, -1).movedim(samples, 0)
        return moved.reshape(len(moved), -1, moved.shape[-1])

    def channels(self, module: Any) -> int:
        """C, the number of neurons."""
        return int(module.out_features)

    def neurons(self, output: Any) -> Tensor:
        """The tensor of neurons in an output of the module."""
        neurons: Tensor = output
        return neurons

    def replace(self, output: Any, neurons: Tensor) -> Any:
        """The output with another tensor of neurons."""
        return neurons


class ConvolutionAdapter(Adapter):
    """Channels before the axes of space: shape (N, C, *space)."""

    def __init__(self, dimensions: int) -> None:
        self.axis = -1 - dimensions

    def channels(self, module: Any) -> int:
        """C, the number of neurons."""
        return int(module.out_channels)


class SequenceAdapter(Adapter):
    """The first of several outputs, of a recurrent layer or of attention: shape (N, T, C) or (T, N, C).

    A packed sequence has a row for each step that is there, and no samples that could be told apart.
    """

    def __init__(self, batch_first: bool) -> None:
        self.samples = 0 if batch_first else 1

    def channels(self, module: Any) -> int:
        """C, the number of neurons."""
        if isinstance(module, nn.MultiheadAttention):
            return int(module.embed_dim)
        return int((module.proj_size or module.hidden_size) * (2 if module.bidirectional else 1))

    def neurons(self, output: Any) -> Tensor:
        """The tensor of neurons in an output of the module."""
        neurons: Tensor = output[0].data if isinstance(output[0], PackedSequence) else output[0]
        return neurons

    def replace(self, output: Any, neurons: Tensor) -> Any:
        """The output with another tensor of neurons."""
        first = output[0]._replace(data=neurons) if isinstance(output[0], PackedSequence) else neurons
        return (first, *output[1:])


class LastState(Adapter):
    """The last layer's last hidden state of a recurrent layer, for networks that use that and not the outputs.

    Of two directions it is the second one's.
    """

    def channels(self, module: Any) -> int:
        """C, the number of neurons."""
        return int(module.proj_size or module.hidden_size)

    def neurons(self, output: Any) -> Tensor:
        """The tensor of neurons, shape (N, C), in an output of the module."""
        state = output[1][0] if isinstance(output[1], tuple) else output[1]
        neurons: Tensor = state[-1]
        return neurons

    def replace(self, output: Any, neurons: Tensor) -> Any:
        """The output with another tensor of neurons."""
        state = output[1][0] if isinstance(output[1], tuple) else output[1]
        state = cat([state[:-1], neurons.unsqueeze(0)])
        return output[0], (state, *output[1][1:]) if isinstance(output[1], tuple) else state


class CellAdapter(Adapter):
    """A recurrent cell, which a network calls once for each step: its hidden state, shape (N, C)."""

    def channels(self, module: Any) -> int:
        """C, the number of neurons."""
        return int(module.hidden_size)

    def neurons(self, output: Any) -> Tensor:
        """The tensor of neurons in an output of the module."""
        neurons: Tensor = output[0] if isinstance(output, tuple) else output
        return neurons

    def replace(self, output: Any, neurons: Tensor) -> Any:
        """The output with another tensor of neurons."""
        return (neurons, *output[1:]) if isinstance(output, tuple) else neurons


class EmbeddingAdapter(Adapter):
    """Words as vectors of C numbers."""

    def channels(self, module: Any) -> int:
        """C, the number of neurons."""
        return int(module.embedding_dim)


class BlockAdapter(Adapter):
    """A block that ends in a layer whose neurons are its own: a Sequential of a convolution and a normalisation."""

    def __init__(self, block: nn.Module, last: nn.Module, adapter: Adapter) -> None:
        self.axis = adapter.axis
        # Blocks of sequences, time first: torch's Transformer layers, unless told otherwise.
        self.samples = max((sequence.samples for sequence in _sequences(block)), default=adapter.samples)
        self._channels = adapter.channels(last)

    def channels(self, module: Any) -> int:
        """C, the number of neurons."""
        return self._channels


def _sequences(block: nn.Module) -> list[SequenceAdapter]:
    adapters = map(layer_adapter, block.modules())
    return [adapter for adapter in adapters if isinstance(adapter, SequenceAdapter)]


_RECURRENT = (nn.LSTM, nn.GRU, nn.RNN)
_CELLS = (nn.LSTMCell, nn.GRUCell, nn.RNNCell)
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_LAYERS = (nn.Linear, nn.Bilinear, *_CONVOLUTIONS, *_RECURRENT, *_CELLS, nn.MultiheadAttention)


def is_layer(module: nn.Module) -> bool:
    """Whether a module is exactly a layer of torch's that has neurons. Subclasses may do anything."""
    return type(module) in _LAYERS


def layer_adapter(module: nn.Module) -> Adapter | None:
    """The adapter of a layer or of a subclass of one; None for any other module."""
    if isinstance(module, (nn.Linear, nn.Bilinear)):
        return Adapter()
    for kind, dimensions in _CONVOLUTIONS.items():
        if isinstance(module, kind):
            return ConvolutionAdapter(dimensions)
    if isinstance(module, (*_RECURRENT, nn.MultiheadAttention)):
        return SequenceAdapter(bool(module.batch_first))
    return CellAdapter() if isinstance(module, _CELLS) else None


def block_adapter(module: nn.Module) -> Adapter | None:
    """The adapter of a block by its last layer with neurons: right for blocks that return what that layer computes.

    Of an embedding, which has dendrites only if it is named, it is its own.
    """
    if isinstance(module, EMBEDDINGS):
        return EmbeddingAdapter()
    for part in reversed(list(module.modules())):
        adapter = layer_adapter(part) if is_layer(part) and part is not module else None
        if adapter is not None and not isinstance(adapter, SequenceAdapter | CellAdapter):
            return BlockAdapter(module, part, adapter)
    return None
