"""What a task finds beside numbers: curves to be drawn, lists of texts.

In: points or texts. Out: JSON, which stands in a suite's results under the measure's name.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal


class Detail(ABC):
    """A result that is no number. There is no mean of those of groups."""

    @abstractmethod
    def record(self) -> dict[str, Any]:
        """Returns it as JSON."""


@dataclass(frozen=True)
class Curve(Detail):
    """Points to be drawn.

    Attributes:
        x, y: of each point.
        x_label, y_label: what they are.
        sizes: how many items a point stands for; None: one each.
        names: of each point; None: they have none.
        kind: `points`; `shares`: y should be as x, both from 0 to 1; `logarithmic`: points, x grows
            by factors.
    """

    x: Sequence[float]
    y: Sequence[float]
    x_label: str
    y_label: str
    sizes: Sequence[int] | None = None
    names: Sequence[str] | None = None
    kind: Literal["points", "shares", "logarithmic"] = "points"

    def record(self) -> dict[str, Any]:
        return {"curve": asdict(self)}


@dataclass(frozen=True)
class Texts(Detail):
    """Texts by what they describe."""

    texts: Mapping[str, Sequence[str]]

    def record(self) -> dict[str, Any]:
        return {"texts": {name: list(each) for name, each in self.texts.items()}}
