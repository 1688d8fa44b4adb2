"""CLIP's byte-pair encoding with fewer merges: a small vocabulary for small corpora and decoders.

In: captions. Out: ids. What is rare is spelled in more tokens; every language can be written.
"""

from .tokenize import NUM_MERGES, ClipTokenizer


class FewMerges(ClipTokenizer):
    """The first merges of CLIP's encoding; ids of bytes and of these merges are CLIP's.

    The vocabulary is 514 larger than the number of merges, and its last two ids are start and end
    of text; `vocab_size` of the text tower and of a caption decoder must say so.

    Args:
        num_merges: the most frequent ones; CLIP has 48,894.

    Raises:
        ValueError: below 0 or more than CLIP has.
    """

    def __init__(self, num_merges: int = 2000) -> None:
        if not 0 <= num_merges <= NUM_MERGES:
            raise ValueError(
                f"num_merges={num_merges}: give 0 to {NUM_MERGES}, as many as CLIP has"
            )
        super().__init__()
        self.num_merges = num_merges
        self.start_id, self.end_id = 512 + num_merges, 513 + num_merges
        self.vocab_size = 514 + num_merges

    def __getstate__(self) -> dict[str, object]:
        return {"num_merges": self.num_merges}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__init__(**state)  # type: ignore[misc] - its own arguments
