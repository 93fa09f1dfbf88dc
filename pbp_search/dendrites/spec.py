"""What dendrites are made of, how they learn, and where they go."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from pbp_search.settings import Settings

Variant = Literal["perforated", "joint", "gradient", "random", "sham"]
Nonlinearity = Literal["tanh", "sigmoid", "relu", "gelu"]
Objective = Literal["correlation", "covariance"]
Pattern = Literal["random", "window", "chosen"]

_LARGE = 2**12  # numbers; below that a kernel's start costs more than its work


def _tanh(z: Tensor) -> Tensor:
    """The hyperbolic tangent. Of many numbers on a CPU it is several times faster by way of the sigmoid."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or z.numel() < _LARGE or z.is_cuda:
        return torch.tanh(z)
    return torch.sigmoid(2 * z).mul_(2).sub_(1)


FUNCTIONS: dict[Nonlinearity, Callable[[Tensor], Tensor]] = {
    "tanh": _tanh,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "gelu": functional.gelu,
}
BOUNDED = ("tanh", "sigmoid")


class DendriteSpec(Settings):
    """The form of the dendrites.

    Attributes:
        variant: ``perforated``, the method itself; ``joint``, whose dendrites learn alike, but then train on with the
            network by ordinary backpropagation; or a control: ``gradient``, dendrites that train jointly with the
            network by ordinary backpropagation (nothing is perforated); ``random``, dendrites that stay at their random
            start; ``sham``, the same cycles and restarts without dendrites.
        nonlinearity: f in ``a = f(z)``, the dendrite's own nonlinearity.
        objective: ``correlation`` (scale free), or ``covariance`` (Fahlman and Lebiere), which needs a bounded f.
        pool: Candidates that are trained side by side; each neuron keeps its best, by held-out records.
        per_neuron: Dendrites that each neuron gets in one generation: the best of the pool.
        fan_in: How many inputs a dendrite sees; all by default. For Linear layers and convolutions.
        pattern: Which inputs: ``random``, a ``window`` of neighbours, or ``chosen``: those that a candidate which sees
            all of them makes most of.
        grid: The shape of the inputs of a Linear for windows, for example ``(28, 28)``; a line by default.
        sees: What dendrites see instead of their module's own inputs: ``input``, what the network is given, or the
            output of the module of that name. For Linear layers with one output for each sample, such as a head.
        placement: Which modules get dendrites: ``all``, the ``head`` (the last one), the ``first``, ``all_but_first``,
            or name patterns such as ``("encoder.*", "!encoder.2")``. A pattern also names blocks, which go as a whole,
            and with an exclamation mark it leaves out.
        outgoing_scale: The deviation of W at the start in the ``gradient`` variant, which would else begin on a saddle.
            In all others W starts at 0.
    """

    variant: Variant = "perforated"
    nonlinearity: Nonlinearity = "tanh"
    objective: Objective = "correlation"
    pool: int = Field(1, ge=1)
    per_neuron: int = Field(1, ge=1)
    fan_in: int | None = Field(None, ge=1)
    pattern: Pattern = "random"
    grid: tuple[int, ...] | None = None
    sees: str | None = Field(None, min_length=1)
    placement: Literal["all", "head", "first", "all_but_first"] | tuple[str, ...] = "all"
    outgoing_scale: float = Field(0.1, ge=0)

    @property
    def learned(self) -> bool:
        """Whether a generation has a dendrite phase."""
        return self.variant in ("perforated", "joint")

    @property
    def unfrozen(self) -> bool:
        """Whether accepted dendrites train with the network, and errors flow back through them."""
        return self.variant in ("joint", "gradient")

    @model_validator(mode="after")
    def _fits_together(self) -> Any:
        if self.objective == "covariance" and self.nonlinearity not in BOUNDED:
            raise ValueError(
                f"covariance has no maximum with the unbounded {self.nonlinearity}: use one of {', '.join(BOUNDED)}, "
                "or the objective correlation"
            )
        if self.per_neuron > self.pool and self.learned:
            raise ValueError(
                f"per_neuron is {self.per_neuron}, but the pool has {self.pool} candidates to choose them from: "
                "pool must be at least per_neuron"
            )
        return self
