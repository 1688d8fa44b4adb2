"""Vectors and sums that are the same whatever the order and size of batches.

Floating-point sums depend on how rows are divided, on the library and on its threads, and a
curation must not. Unit vectors are therefore rounded to multiples of 2^-20 (a float16 store rounds
them to about 2^-12), and a product of two of them, or of one and the sum of up to 4,096, is a sum
of integers below 2^53: float64 holds it exactly, in any order.
"""

import numpy as np
import pyarrow as pa

from ..base import State, vectors

UNIT = 1 << 20
MAX_SUMMED = 1 << 12  # unit vectors whose sum still has exact products
_EXPONENTS = 1 << 12  # of all float64 numbers, and more
_MANTISSA = 31  # bits; 2^32 rows of them fit into int64


def unit_vectors(rows: pa.RecordBatch, name: str) -> np.ndarray:
    """Returns a column as unit vectors in multiples of 2^-20: integers in float64 [n, d].

    Raises:
        ValueError: a number is not finite.
    """
    return rounded(check_finite(vectors(rows, name), name))


def check_finite(values: np.ndarray, name: str) -> np.ndarray:
    """Returns values as they are.

    Raises:
        ValueError: one is not finite, which would spoil the sums and distances of other rows.
    """
    if not np.isfinite(values).all():
        raise ValueError(
            f"{name} has numbers that are not finite; make the store again (counterpoint embed "
            "refuses such, and --precision bfloat16 or float32 may avoid them)"
        )
    return values


def rounded(values: np.ndarray) -> np.ndarray:
    """Returns vectors [n, d] of length up to one in multiples of 2^-20, as float64."""
    return np.rint(values.astype(np.float64) * UNIT)


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Returns the cosines of two `unit_vectors` [n, d] row by row, float64 [n]."""
    return np.einsum("nd,nd->n", one, other) / UNIT**2


def value_sums(values: np.ndarray) -> State:
    """Returns the sum of values of at least 0, [n], as a state that adds up in any order."""
    mantissa, exponent = np.frexp(values.astype(np.float64))
    integers = np.rint(np.ldexp(mantissa, _MANTISSA))
    sums = np.bincount(exponent + _EXPONENTS // 2, weights=integers, minlength=_EXPONENTS)
    return {"sums": sums.astype(np.int64), "rows": np.array(len(values))}


def total_of(sums: np.ndarray) -> float:
    """Returns the sum that `value_sums` hold, to 2^-32 of it."""
    return float(
        np.ldexp(sums.astype(np.float64), np.arange(len(sums)) - _EXPONENTS // 2 - _MANTISSA).sum()
    )
