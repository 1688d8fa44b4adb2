"""The recipe of every sample: views of its image, texts, joined rows.

In: the choices of the `data` slot. Out: a `Recipe` for the loader with all entries of a batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from .images.transforms import TrainTransform, Transform
from .sidecar import Sidecar
from .text.captions import CaptionPolicy
from .text.regions import RegionText
from .text.tokenize import Tokenizer

TEXT_BYTES = 4096  # of a sample without views


@dataclass(frozen=True)
class View:
    """One view of every image.

    Attributes:
        transform: computes the view.
        size: side in pixels; None: that of the model's images.
        same_as: source of the augmentation parameters instead of drawing them: another view
            (`image`: the same crop, for a teacher with another resolution) or a sidecar's entry
            (`teacher.augmentation`: those of stored embeddings). A sample without stored parameters
            draws its own.
        member: the image: `negative` is `KEY.negative.png`, which samples may lack; None: the
            sample's own, `KEY.png`.
    """

    transform: Transform
    size: int | None = None
    same_as: str | None = None
    member: str | None = None

    @property
    def side(self) -> int:
        """The side in pixels, once set."""
        assert self.size is not None
        return self.size

    def replayed(
        self, params: Mapping[str, np.ndarray], rows: Mapping[str, Tensor]
    ) -> np.ndarray | None:
        """Returns the parameters of `same_as`; None: the view draws its own.

        Args:
            params: parameters of the views before, by name.
            rows: the sample's joined rows by batch entry.

        Raises:
            ValueError: stored parameters are not those of this transform.
        """
        if self.same_as is None:
            return None
        if self.same_as in params:
            return params[self.same_as]
        sidecar = self.same_as.partition(".")[0]
        if not rows[f"{sidecar}.present"]:
            return None
        stored = rows[self.same_as].double().numpy()
        if stored.shape != (len(self.transform.columns),):
            raise ValueError(
                f"the entry '{self.same_as}' has the shape {list(stored.shape)}, and "
                f"{type(self.transform).__name__} takes {len(self.transform.columns)} parameters "
                f"({', '.join(self.transform.columns)}); store what batches hold as "
                "'image.augmentation'"
            )
        return stored


@dataclass(frozen=True)
class Recipe:
    """Views, texts and joined rows of every sample.

    Attributes:
        seed: seed of everything random.
        views: views by batch entry, `image` first, then `image.NAME`.
        texts: caption policy by batch entry (`text`, `text.NAME`), then by source.
        key_fields: JSON field that identifies a sample, by source.
        sidecars: joined tensors by name.
        caption_same_as: joined entry with the number that chooses the main caption; None: draw it.

    Raises:
        ValueError: a view or the caption takes its parameters from an unknown entry, or from a view
            after it, or boxes are of a view that cuts or turns the image.
    """

    seed: int
    views: Mapping[str, View]
    texts: Mapping[str, Mapping[str, CaptionPolicy]]
    key_fields: Mapping[str, str]
    sidecars: Mapping[str, Sidecar] = field(default_factory=dict)
    caption_same_as: str | None = None

    def __post_init__(self) -> None:
        for name in self.sidecars:
            if name in ("image", "text") or "." in name:
                raise ValueError(
                    f"the sidecar '{name}' needs another name: its batch entries begin with it and "
                    "a dot, and 'image' and 'text' are taken"
                )
        stored = {
            f"{n}.{entry}" for n, sidecar in self.sidecars.items() for entry in sidecar.columns
        }
        if self.caption_same_as not in {None, *stored}:
            raise ValueError(
                f"caption_same_as is '{self.caption_same_as}', which is no entry of a sidecar; "
                f"there is {', '.join(sorted(stored)) or 'none'}"
            )
        before: list[str] = []
        for name, view in self.views.items():
            # `image.augmentation` is what is drawn for the main view.
            if name == "image.augmentation" or name.count(".") > 1:
                raise ValueError(
                    f"the view '{name.partition('.')[2]}' needs another name, without dots and "
                    "not 'augmentation': batches hold other entries under such names"
                )
            if view.size is not None and view.size < 1:
                raise ValueError(f"the view '{name}' has size={view.size}; give 1 pixel or more")
            if view.same_as is not None and view.same_as not in {*stored, *before}:
                entries = ", ".join([*before, *sorted(stored)]) or "nothing"
                raise ValueError(
                    f"the view '{name}' is to be the same as '{view.same_as}', which is neither a "
                    f"view before it nor an entry of a sidecar; there is {entries}"
                )
            for entry in view.transform.around:
                crop = self.views[entry].transform if entry in before else None
                if not isinstance(crop, TrainTransform) or self.views[entry].member != view.member:
                    raise ValueError(
                        f"the view '{name}' is to lie around '{entry}', which is no crop of the "
                        f"same image made before it; the views before it are {before}"
                    )
            if view.same_as in before:
                other = self.views[view.same_as]
                if other.member != view.member:
                    raise ValueError(
                        f"the view '{name}' cannot take the parameters of '{view.same_as}', which "
                        "is of another image: crops are counted in an image's own pixels; leave "
                        "same_as out"
                    )
                if other.transform.columns != view.transform.columns:
                    raise ValueError(
                        f"the view '{name}' cannot take the parameters of '{view.same_as}': their "
                        "transforms are of different kinds; give both the same class"
                    )
            before.append(name)
        self._check_regions()

    @property
    def regions(self) -> dict[str, RegionText]:
        """The texts that are of regions, by batch entry."""
        policies = [(entry, p) for entry, each in self.texts.items() for p in each.values()]
        return {entry: policy for entry, policy in policies if isinstance(policy, RegionText)}

    def _check_regions(self) -> None:
        """Refuses boxes that views move, and policies that would draw another region."""
        regions = self.regions
        fields = {field for policy in regions.values() for field in policy.fields}
        for entry in self.texts.keys() - regions.keys():
            for policy in self.texts[entry].values():
                if both := sorted(fields.intersection(policy.fields)):
                    raise ValueError(
                        f"the text '{entry}' reads {both[0]} through {type(policy).__name__}, "
                        "which would draw another region than other texts; name RegionPhrase or "
                        "RegionBox itself"
                    )
        for entry, policy in regions.items() if self.views else ():
            view = self.views.get(policy.view)
            if view is None or not view.transform.keeps_fractions:
                made = (
                    "is no view" if view is None else f"is made by {type(view.transform).__name__}"
                )
                raise ValueError(
                    f"the text '{entry}' has boxes of '{policy.view}', which {made}: boxes stay "
                    "where they are only in the whole image; set data.train_transform (of a view, "
                    "its transform) to an EvalTransform with resize: squash, or name such a view "
                    f"as the `view` of {type(policy).__name__}"
                )

    @property
    def bytes_per_sample(self) -> int:
        """Memory of one sample's views in a batch; some without any, for its texts."""
        return sum(3 * view.side**2 for view in self.views.values()) or TEXT_BYTES


@dataclass(frozen=True)
class Source:
    """One named source; the name is that of the manifest's `source` column.

    Attributes:
        share: target proportion of the samples, relative to the other sources; 0 leaves it out.
        caption: fields or a policy; None: `data.caption`.
        key_field: JSON field that identifies a sample; None: `data.key_field`.
    """

    share: float | None = None
    caption: tuple[str, ...] | CaptionPolicy | None = None
    key_field: str | None = None


def check_names(sources: Mapping[str, Source], names: Sequence[str]) -> None:
    """Raises a ValueError if `sources` names one that the manifest does not have."""
    unknown = sorted(set(sources) - set(names))
    if unknown:
        raise ValueError(
            f"data.sources names {', '.join(unknown)}, which the manifest does not have; it has "
            f"{', '.join(names)}"
        )


def explicit_shares(sources: Mapping[str, Source], names: Sequence[str]) -> dict[str, float] | None:
    """Returns the shares in the run file; None without any.

    Raises:
        ValueError: some sources have a share and others not, one is negative, or all are 0.
    """
    shares = {name: source.share for name, source in sources.items() if source.share is not None}
    if not shares:
        return None
    missing = [name for name in names if name not in shares]
    if missing:
        raise ValueError(
            f"data.sources gives shares, but none to {', '.join(missing)}; give every source one "
            "(0 leaves it out)"
        )
    if min(shares.values()) < 0 or not sum(shares.values()) > 0:
        raise ValueError(f"the shares {shares} must be 0 or more, one of them above 0")
    return shares


@dataclass(frozen=True)
class Text:
    """One text of every sample.

    Attributes:
        caption: a policy, or fields in order of preference; None: the main caption, for another
            tokenizer.
        tokenizer: maps the text to ids; None: the tokenizer of `data`.
        context_length: tokens of a row; None: those of the model's captions.

    Raises:
        ValueError: context_length is below 1.
    """

    caption: CaptionPolicy | tuple[str, ...] | None = None
    tokenizer: Tokenizer | None = None
    context_length: int | None = None

    def __post_init__(self) -> None:
        if self.context_length is not None and self.context_length < 1:
            raise ValueError(f"a text has context_length={self.context_length}; give 1 or more")
