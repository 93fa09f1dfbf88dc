"""Where networks are trained."""

import torch

from pbp_search.errors import InputError


def device_of(name: str) -> torch.device:
    """The device of a name: ``auto`` is CUDA's where there is one, then Apple's MPS, then the CPU.

    Raises:
        InputError: There is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (
        RuntimeError,
        AssertionError,
        NotImplementedError,
        ImportError,
    ):  # whatever a build of torch without it says
        raise InputError(
            f"There is no device {name!r} on this machine: use auto, or cpu, cuda, cuda:0 or mps where torch finds it."
        ) from None
    if device.type == "meta":
        raise InputError("The device 'meta' computes nothing: use auto, cpu, cuda or mps.")
    return device
