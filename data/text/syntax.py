"""Text reducers of words, which shorten captions before tokenizing.

In: a caption. Out: a shorter one. Like the reducers of tokens they belong to a phase; unlike them
nothing here is random.
"""

import functools
import string
from collections.abc import Callable, Sequence

# Li et al. rank nouns first, then adjectives, verbs and all others: Penn treebank tags begin so.
RANKS = {"NN": 0, "JJ": 1, "VB": 2}


class WordReducer:
    """Shortens captions; the base class changes nothing."""

    def __call__(self, text: str) -> str:
        """Returns the caption to tokenize."""
        return text


class Syntax(WordReducer):
    """Keeps the words that matter by part of speech, in their order.

    Nouns come first, then adjectives, verbs, others; of one kind the earlier words. Li et al.,
    "An Inverse Scaling Law for CLIP Training" (CLIPA, 2023), section 3 ("syntax mask"). English
    only: the tagger is TextBlob's (a lexicon and rules, about 35 us a caption). Captions of too
    many tokens are then cut by the tokenizer or by `Truncate`.

    Args:
        num_words: words of the longest caption, counted between spaces.

    Raises:
        ValueError: `num_words` is below 1, or TextBlob is not installed.
    """

    def __init__(self, num_words: int):
        if num_words < 1:
            raise ValueError(f"Syntax has num_words={num_words}; give at least 1")
        self.num_words = num_words
        tagger()

    def __call__(self, text: str) -> str:
        words = text.split()
        if len(words) <= self.num_words:
            return text
        bare = [word.strip(string.punctuation) or word for word in words]
        ranks = [RANKS.get(tag[:2], len(RANKS)) for _, tag in tagger()(bare)]
        # Sorting is stable: equal ranks stay in order.
        best = sorted(range(len(words)), key=ranks.__getitem__)[: self.num_words]
        return " ".join(words[i] for i in sorted(best))


@functools.cache
def tagger() -> Callable[[Sequence[str]], Sequence[Sequence[str]]]:
    """Returns TextBlob's tagger of lists of words; its lexicon comes with the package.

    Raises:
        ValueError: TextBlob is not installed.
    """
    try:
        from textblob.en import parser
    except ImportError:
        raise ValueError(
            "the Syntax reducer needs TextBlob, which is not installed; "
            "run `pip install -e '.[syntax]'` in Counterpoint's folder"
        ) from None
    return parser.find_tags
