"""Probe: the probability of a property of an image or caption, from its stored embedding.

Schramowski et al., "Can Machines Help Us Answering Question 16 in Datasheets?" (2022), section 3:
a classifier on CLIP's embeddings finds inappropriate images, either linear or by learned prompts,
whose embeddings stand for the classes.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from ...base import Columns, Filter, State, vectors
from ...numerics.array_files import check_width, class_embeddings, read_arrays
from ...numerics.fixed_point import check_finite


@dataclass(frozen=True)
class Probe(Filter):
    """Writes a probability; `threshold` then leaves out what is above or below one.

    Args:
        file: a linear probe, with `weight` [c, d] and `bias` [c] over embeddings of length one
            (counterpoint probe fits one), or a prompt probe, with embeddings of the prompts,
            `classes` [c, d].
        embedding: column of the embeddings.
        of: the class whose probability is written, among the c; a linear probe of two labels has
            c = 1, and gives that of the label 1.
        scale: of a prompt probe's cosines before the softmax; 100 is CLIP's.
        column: name of the probability.
    """

    file: Path
    embedding: str = "clip.image"
    of: int = 0
    scale: float = 100.0
    column: str = "probe"

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        """The embedding."""
        return (self.embedding,)

    @property
    def writes(self) -> tuple[str, ...]:  # type: ignore[override]
        """The probability."""
        return (self.column,)

    def files(self) -> list[Path]:
        return [self.file]

    def apply(self, rows: pa.RecordBatch, state: State) -> Columns:
        values = check_finite(vectors(rows, self.embedding), self.embedding).astype(np.float64)
        weight, bias = self._layer(values.shape[1])
        if not 0 <= self.of < len(weight):
            raise ValueError(f"of={self.of}: '{self.file}' has the classes 0 to {len(weight) - 1}")
        # Row by row: a product of matrices would depend on how many rows there are.
        logits = np.stack([(values * row).sum(1) for row in weight], axis=1) + bias
        if len(weight) == 1:  # a sigmoid: the other class has the logit 0
            logits = np.pad(logits, ((0, 0), (0, 1)))
        odds = np.exp(logits - logits.max(1, keepdims=True))
        return {self.column: (odds[:, self.of] / odds.sum(1)).astype(np.float32)}

    def _layer(self, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the weight, float64 [c, width], and the bias [c] of the logits."""
        arrays = read_arrays(self.file)
        if "weight" not in arrays:
            weight = self.scale * class_embeddings(self.file, width)
            return weight, np.zeros(len(weight))
        weight = arrays["weight"].astype(np.float64)
        check_width(self.file, "weight", weight, width)
        bias = arrays.get("bias", np.zeros(len(weight))).astype(np.float64)
        if bias.size != len(weight):
            raise ValueError(
                f"'bias' in '{self.file}' has {bias.size} numbers, and 'weight' {len(weight)} "
                "rows: give one for each"
            )
        return weight, bias.reshape(len(weight))
