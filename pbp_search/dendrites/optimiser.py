"""Adam on parameters that lie in one buffer: a step is one call of a kernel, however many parameters there are.

Over 80% of a small network's training step is overhead, and most of that is the optimiser's bookkeeping.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn


def flatten(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Lay parameters into one buffer for each type and device.

    The parameters stay what they are, but their values and gradients become views of the returned parameters: a step
    on these is a step on those, for every optimiser that treats each number alike.

    Returns:
        One flat parameter for each type and device, with its gradient.
    """
    groups: dict[tuple[torch.dtype, torch.device], list[nn.Parameter]] = {}
    for parameter in parameters:
        groups.setdefault((parameter.dtype, parameter.device), []).append(parameter)
    flats = []
    for group in groups.values():
        flat = nn.Parameter(torch.cat([parameter.detach().flatten() for parameter in group]))
        flat.grad = torch.zeros_like(flat)
        start = 0
        for parameter in group:
            end = start + parameter.numel()
            parameter.data = flat.data[start:end].view_as(parameter)
            parameter.grad = flat.grad[start:end].view_as(parameter)
            start = end
        flats.append(flat)
    return flats


class Adam:
    """Adam (D. Kingma and J. Ba, ICLR 2015) on flattened parameters, by the kernel behind ``torch.optim.Adam``.

    Args:
        parameters: Flattened by this: their values and gradients become views.
        learning_rate: The step size.
        weight_decay: Decoupled from the gradient (I. Loshchilov and F. Hutter, ICLR 2019).
        undecayed: Parameters that take no weight decay.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        learning_rate: float,
        weight_decay: float = 0.0,
        undecayed: Sequence[nn.Parameter] = (),
    ) -> None:
        self._learning_rate = learning_rate
        self._groups: list[tuple[float, list[Tensor], list[Tensor], list[Tensor], list[Tensor], list[Tensor]]] = []
        for decay, group in ((weight_decay, parameters), (0.0, undecayed)):
            flats = flatten(group)
            if flats:
                gradients = [flat.grad for flat in flats if flat.grad is not None]
                averages = [torch.zeros_like(flat) for flat in flats]
                squares = [torch.zeros_like(flat) for flat in flats]
                counts = [torch.zeros((), device=flat.device) for flat in flats]
                self._groups.append((decay, [flat.data for flat in flats], gradients, averages, squares, counts))

    def zero_grad(self) -> None:
        """Set all gradients to zero: they are views and stay where they are."""
        for _, _, gradients, _, _, _ in self._groups:
            for gradient in gradients:
                gradient.zero_()

    def step(self) -> None:
        """Change the parameters by their gradients."""
        for decay, values, gradients, averages, squares, counts in self._groups:
            torch._foreach_add_(counts, 1.0)
            update = torch._fused_adamw_ if decay else torch._fused_adam_
            update(
                values,
                gradients,
                averages,
                squares,
                [],
                counts,
                lr=self._learning_rate,
                beta1=0.9,
                beta2=0.999,
                weight_decay=decay,
                eps=1e-8,
                amsgrad=False,
                maximize=False,
                grad_scale=None,
                found_inf=None,
            )
