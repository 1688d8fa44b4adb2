"""A tokenizer unlike any other, for tests of runs whose tokenizers differ."""

from counterpoint.data.text.tokenize import ClipTokenizer


class Reversed(ClipTokenizer):
    """CLIP's ids, last word first."""

    def encode(self, text: str, limit: int) -> list[int]:
        return super().encode(text, limit)[::-1]
