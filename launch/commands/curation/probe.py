"""`counterpoint probe`: a linear probe on stored embeddings, for the filter of that name.

In: a store and a parquet file with the labels of some of its samples. Out: a file with `weight` and
`bias`. Samples are told apart by a hash of their key into five parts, each of which is predicted by
a probe of the four others; the probe that is written has seen all of them.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save

from ....data.curate.base import vectors
from ....data.curate.numerics.logistic import fit_logistic
from ....data.curate.stores import Store
from ....data.files import whole_file
from ....data.hashing import mix, seeded
from ... import arguments

PARTS = 5


def main(argv: list[str]) -> int:
    """Writes the probe and prints its accuracy on samples that it has not seen; returns 0."""
    chosen = arguments.probe().parse_args(argv)
    keys, labels = labels_of(chosen.labels)
    keys, rows, labels = labelled(Store(chosen.store), chosen.column, keys, labels)
    part = (mix(keys, seeded("probe")) % np.uint64(PARTS)).astype(np.int64)
    right = 0
    for number in range(PARTS):
        others = part != number
        if set(labels[others]) != set(labels):
            raise ValueError(
                f"{len(labels):,} labelled samples are too few to test a probe: there must be some "
                f"of each label in each four of {PARTS} random parts"
            )
        weight, bias = fit_logistic(rows[others], labels[others], chosen.l2)
        right += int((predicted(rows[~others], weight, bias) == labels[~others]).sum())
    weight, bias = fit_logistic(rows, labels, chosen.l2)
    arrays = {"weight": torch.from_numpy(weight).float(), "bias": torch.from_numpy(bias).float()}
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(chosen.out) as written:
        written.write_bytes(save({name: array.contiguous() for name, array in arrays.items()}))
    share, frequent = right / len(labels), np.bincount(labels).max() / len(labels)
    print(
        f"{chosen.out}: fitted on {len(labels):,} samples; of those left out {share:.1%} right "
        f"(the most frequent label is {frequent:.1%} of all)"
    )
    return 0


def labels_of(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns the keys and labels of a parquet file, int64 [n].

    Raises:
        ValueError: it has not both columns, or labels are not whole numbers from 0.
    """
    try:
        table = pq.read_table(path, columns=["key", "label"])
        keys, labels = (table[name].cast(pa.int64()).to_numpy() for name in ("key", "label"))
    except (OSError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(
            f"'{path}' is no parquet file with the columns key and label, whole numbers "
            f"({str(error).splitlines()[0]})"
        ) from error
    if not len(labels) or labels.min() < 0:
        raise ValueError(f"'{path}' has no rows, or labels below 0; labels are 0, 1, ...")
    return keys, labels


def labelled(
    store: Store, column: str, keys: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns keys, embeddings and labels of the samples that have both, sorted by key.

    Raises:
        ValueError: no sample has both.
    """
    keys, first = np.unique(keys, return_index=True)
    (values,) = store.read("", "", keys, [column])
    there = values.is_valid().to_numpy(zero_copy_only=False)
    if not there.any():
        raise ValueError(
            f"none of the {len(keys):,} labelled keys is in the store '{store.folder}'"
        )
    rows = pa.RecordBatch.from_pydict({column: values.filter(pa.array(there))})
    return keys[there], vectors(rows, column), labels[first][there]


def predicted(rows: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Returns the labels [n] that a probe gives to unit rows [n, d]."""
    logits = rows @ weight.T + bias
    return (logits[:, 0] > 0).astype(np.int64) if len(weight) == 1 else logits.argmax(1)
