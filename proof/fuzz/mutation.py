"""How what is good is made wrong, and the answers to it are asked for."""

import random
from collections.abc import Awaitable, Callable, Sequence

#: One round: feeds what chance gives it, and returns the answers. Any exception is an escape.
One = Callable[[random.Random], Awaitable[list[str]]]


def mutated(rng: random.Random, data: bytes, words: Sequence[bytes], most: int = 4) -> bytes:
    """The same with some bytes cut out, doubled, or replaced: by chance, or by words that mean something there."""
    for _ in range(rng.randint(0, most)):
        start = rng.randrange(len(data) + 1)
        end = min(len(data), start + rng.randint(0, 8))
        other = rng.choice((b"", rng.randbytes(end - start), data[start:end] * 2, rng.choice(words), rng.choice(words)))
        data = data[:start] + other + data[end:]
    return data
