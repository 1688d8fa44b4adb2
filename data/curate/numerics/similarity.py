"""Cosines that are the same numbers in any order of summation.

In: vectors. Out: the same ones as whole numbers of 12 bits, and what follows of them. Every partial
sum of their products is below 2^24 and therefore exact in float32, so that nothing depends on how
rows are cut into blocks, on the number of threads, on the processor or on its library. A cosine is
off by about 1e-4 through this, and by far less between vectors that are almost equal. Where
rows are few, `fixed_point.py` has finer numbers in float64.
"""

import numpy as np
import torch

STEPS = 1 << 12
# Cosines at once.
BLOCK, COLUMNS = 1 << 10, 1 << 13


def rounded(vectors: np.ndarray) -> np.ndarray:
    """Returns unit vectors [n, d] as whole numbers of at most 4096 in length, float32 [n, d].

    A vector of zeros stays one.
    """
    # Rounding adds at most half the root of d to a length.
    scale = np.float32(STEPS - np.sqrt(vectors.shape[1]) / 2 - 1)
    return np.rint(vectors * scale)


def lengths(rows: np.ndarray) -> np.ndarray:
    """Returns the lengths of rounded rows [n, d], float32 [n]; 1 for a row of zeros."""
    squares = np.einsum("nd,nd->n", rows, rows)
    return np.sqrt(np.maximum(squares, 1))


def centre_cosines(rows: np.ndarray) -> np.ndarray:
    """Returns cosines between rounded rows [n, d] and the direction of their sum, float64 [n].

    Up to 2^29 rows.
    """
    total = rows.sum(0, dtype=np.float64)
    cosines = np.empty(len(rows))
    for first in range(0, len(rows), COLUMNS):
        cosines[first : first + COLUMNS] = rows[first : first + COLUMNS].astype(np.float64) @ total
    return cosines / (lengths(rows) * np.sqrt(max(float(total @ total), 1.0)))


def near_earlier(rows: np.ndarray, limit: float) -> np.ndarray:
    """Returns which rounded rows [n, d] have a cosine above a limit with an earlier row, bool [n].

    Memory grows with n alone: the triangle of cosines is made in blocks.
    """
    size = lengths(rows)
    near = np.zeros(len(rows), dtype=bool)
    for first in range(0, len(rows), BLOCK):
        last = min(first + BLOCK, len(rows))
        own = np.triu(rows[first:last] @ rows[first:last].T, 1) / size[first:last, None]
        near[first:last] = (own > limit * size[first:last]).any(0)
        for start in range(0, first, COLUMNS):
            left = first + np.flatnonzero(~near[first:last])
            if not len(left):
                break
            stop = min(start + COLUMNS, first)
            cosines = rows[left] @ rows[start:stop].T
            cosines /= size[start:stop]
            near[left] = cosines.max(1) > limit * size[left]
    return near


def nearest(rows: np.ndarray, centres: np.ndarray, device: str = "cpu") -> np.ndarray:
    """Returns the number of the centre [m, d] of highest cosine for each row [n, d], int64 [n].

    Args:
        rows: rounded.
        centres: rounded; of equally near ones the first is found.
        device: where the cosines are made; the result is the same on any.
    """
    columns = torch.from_numpy(centres).to(device)
    size = torch.from_numpy(lengths(centres)).to(device)
    numbers = torch.arange(len(centres), dtype=torch.int32, device=device)
    none = torch.tensor(len(centres), dtype=torch.int32, device=device)
    found = np.empty(len(rows), dtype=np.int64)
    block = max(1, BLOCK * COLUMNS // len(centres))
    for first in range(0, len(rows), block):
        part = torch.from_numpy(rows[first : first + block]).to(device)
        cosines = (part @ columns.T).div_(size)
        highest = cosines == cosines.amax(1, keepdim=True)
        # argmax finds any of equal ones.
        number = torch.where(highest, numbers, none).amin(1)
        found[first : first + block] = number.cpu().numpy()
    return found
