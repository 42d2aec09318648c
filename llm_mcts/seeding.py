"""Random numbers that depend on what they are for, never on when they are drawn.

Every draw of a run derives its seed from (run seed, question, place in the tree, draw index), so a result is the same
whatever else was in the batch.
"""

import hashlib


def derive_seed(seed: int, *parts: object) -> int:
    """A 63-bit seed for one purpose: a hash of the parent seed and the purpose's parts (by their text)."""
    text = repr((seed, *map(str, parts)))  # quoted, so that no two lists of parts read the same
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
