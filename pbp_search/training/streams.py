"""Random streams, each keyed by what it is for: (seed, name, generation, try, epoch).

No stream depends on what was drawn before, so a milestone can be continued anywhere with the same result.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def key(seed: int, *parts: int | str) -> int:
    """A 63-bit seed that depends on all parts."""
    text = "/".join(str(part) for part in (seed, *parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


def generator(seed: int, *parts: int | str) -> torch.Generator:
    """A generator of a stream of its own."""
    return torch.Generator().manual_seed(key(seed, *parts))


@contextmanager
def global_stream(seed: int, *parts: int | str) -> Iterator[None]:
    """Torch's global stream (starts, dropout, batch order) keyed inside, restored outside."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key(seed, *parts))
        yield
