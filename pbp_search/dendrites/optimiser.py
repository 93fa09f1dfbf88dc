"""Adam without the bookkeeping: a step is one call of a kernel for all parameters of a type and device.

Over 80% of a small network's training step is overhead, and much of that is the optimiser's.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pbp_search.errors import TrainingError


@dataclass(frozen=True)
class _Group:
    """Parameters that are treated alike and have had equally many steps, and Adam's averages of each."""

    decay: float
    parameters: list[Tensor]
    averages: list[Tensor]
    squares: list[Tensor]
    count: Tensor

    def part(self, rows: list[int]) -> "_Group":
        """Some of the parameters, with a count of their own."""
        lists = (self.parameters, self.averages, self.squares)
        parameters, averages, squares = ([some[row] for row in rows] for some in lists)
        return _Group(self.decay, parameters, averages, squares, self.count.clone())


class Adam:
    """Adam (D. Kingma and J. Ba, ICLR 2015) by the kernel behind ``torch.optim.Adam``, and with the same rules.

    A parameter without a gradient in a step is left as it is: no weight decay, and no step of its averages.

    Args:
        parameters: Trained. Those that hold no numbers are left out.
        learning_rate: The step size.
        weight_decay: Decoupled from the gradient (I. Loshchilov and F. Hutter, ICLR 2019).
        undecayed: Also trained, but without weight decay.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        learning_rate: float,
        weight_decay: float = 0.0,
        undecayed: Sequence[nn.Parameter] = (),
    ) -> None:
        self._learning_rate = learning_rate
        alike: dict[tuple[float, torch.dtype, torch.device], list[Tensor]] = {}
        for decay, some in ((weight_decay, parameters), (0.0, undecayed)):
            for parameter in some:
                if parameter.numel():
                    alike.setdefault((decay, parameter.dtype, parameter.device), []).append(parameter)
        self._groups = [
            _Group(
                decay,
                some,
                [torch.zeros_like(parameter) for parameter in _real(some)],
                [torch.zeros_like(parameter) for parameter in _real(some)],
                torch.zeros((), device=device),
            )
            for (decay, _, device), some in alike.items()
        ]

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for group in self._groups:
            for parameter in group.parameters:
                parameter.grad = None

    def step(self) -> None:
        """Change the parameters by their gradients.

        Raises:
            TrainingError: A parameter has another type or device than at the start.
        """
        groups = []
        with torch.no_grad():
            for group in self._groups:
                gradients = [parameter.grad for parameter in group.parameters if parameter.grad is not None]
                if gradients and len(gradients) < len(group.parameters):  # now they have different numbers of steps
                    rows = range(len(group.parameters))
                    found = [row for row in rows if group.parameters[row].grad is not None]
                    groups.append(group.part([row for row in rows if row not in found]))
                    group = group.part(found)
                if gradients:
                    self._update(group, gradients)
                groups.append(group)
        self._groups = groups

    def _update(self, group: _Group, gradients: list[Tensor]) -> None:
        group.count.add_(1)
        update = torch._fused_adamw_ if group.decay else torch._fused_adam_
        try:
            update(
                _real(group.parameters),
                _real(gradients),
                group.averages,
                group.squares,
                [],
                [group.count] * len(gradients),
                lr=self._learning_rate,
                beta1=0.9,
                beta2=0.999,
                weight_decay=group.decay,
                eps=1e-8,
                amsgrad=False,
                maximize=False,
                grad_scale=None,
                found_inf=None,
            )
        except RuntimeError as error:
            if any(gradient.is_sparse for gradient in gradients):
                raise TrainingError(
                    "The network has sparse gradients, which Adam's averages are not: "
                    "make its embeddings with sparse=False."
                ) from error
            pairs = zip(group.parameters, group.averages, strict=True)
            if all((one.dtype, one.device) == (other.dtype, other.device) for one, other in pairs):
                raise
            raise TrainingError(
                "The network was moved to another type or device while it was trained: "
                "move it where the task's model() makes it."
            ) from error


def _real(values: list[Tensor]) -> list[Tensor]:
    """Values of one type; of complex numbers their real and imaginary parts, each with averages of its own."""
    return [torch.view_as_real(value) for value in values] if values[0].is_complex() else values
