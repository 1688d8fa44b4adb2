"""The named sets of shards that a run mixes.

In: what the run file says of each source. Out: target proportions for the plan, a caption policy
and a key field for each source.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .text.captions import CaptionPolicy


@dataclass(frozen=True)
class Source:
    """One named source; the name is that of the manifest's `source` column.

    Attributes:
        share: Target proportion of the samples, relative to the other sources; 0 leaves it out.
        caption: Fields or a policy; None: as `data.caption` says.
        key_field: JSON field that identifies a sample; None: as `data.key_field` says.
    """

    share: float | None = None
    caption: tuple[str, ...] | CaptionPolicy | None = None
    key_field: str | None = None


def check_names(sources: Mapping[str, Source], known: Sequence[str]) -> None:
    """Raises a ValueError when a source is described that the manifest does not have."""
    unknown = sorted(set(sources) - set(known))
    if unknown:
        raise ValueError(
            f"data.sources names {', '.join(unknown)}, which the manifest does not have; it has "
            f"{', '.join(known)}"
        )


def explicit_shares(sources: Mapping[str, Source], known: Sequence[str]) -> dict[str, float] | None:
    """Returns the proportions that the run file states; None when it states none.

    Raises:
        ValueError: Some sources have a share and others not, one is negative, or all are 0.
    """
    shares = {name: source.share for name, source in sources.items() if source.share is not None}
    if not shares:
        return None
    silent = [name for name in known if name not in shares]
    if silent:
        raise ValueError(
            f"data.sources gives shares, but none to {', '.join(silent)}; give every source one "
            "(0 leaves it out)"
        )
    if min(shares.values()) < 0 or not sum(shares.values()) > 0:
        raise ValueError(f"the shares {shares} must be 0 or more, one of them above 0")
    return shares
