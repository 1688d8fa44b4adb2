"""Seeds of what is drawn in a step: a function of the run's seed, the step and the rank."""

import hashlib


def step_seed(seed: int, step: int, rank: int) -> int:
    """Returns a 63-bit seed, the same on every machine."""
    digest = hashlib.blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
