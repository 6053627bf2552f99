"""Count words to judge whether a text is positive or negative.

**There is no model behind it.** There is a list of words that usually praise, and a list of words
that usually blame. A word after "not", "never" and the like counts for the other side. So an
example with real texts can measure something real: how often a rule of forty lines is right.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

QUESTION: Final = "positive or negative"
"""A prompt with these words, in any case, is answered with ``positive`` or ``negative``."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_POSITIVE: Final = _words(
    """
    amazing amusing astonishing awesome beautiful beautifully best better brilliant brilliantly
    captivating charm charming clever compelling delight delightful effective emotional engaging
    enjoy enjoyable enjoyed entertaining excellent exceptional exciting fantastic fascinating
    favorite favourite fine flawless fresh fun funniest funny gem glorious good gorgeous great
    greatest gripping happy heart heartfelt hilarious honest humor impressive incredible inspired
    inspiring intelligent interesting intriguing joy liked lively love loved lovely magnificent
    marvelous masterful masterpiece memorable moving outstanding perfect perfectly pleasant
    pleasure poignant powerful recommend recommended refreshing remarkable rich riveting satisfying
    sensitive smart solid spectacular splendid stunning subtle superb superbly surprisingly sweet
    terrific thoughtful thrilling touching treat unforgettable unique vivid warm warmth witty
    wonderful wonderfully worth
    """
)
_NEGATIVE: Final = _words(
    """
    absurd amateurish annoying appalling atrocious avoid awful awfully awkward bad badly bland bored
    boring bother cheap cheesy cliche cliched cliches clumsy confused contrived crap crude
    depressing disappointed disappointing disappointment disaster disgusting dreadful dreary dull
    embarrassing empty excuse fail failed fails failure fake flat flawed forced forgettable
    frustrating garbage generic hate hated heavy-handed hollow horrible horribly idiotic incoherent
    inept insult insulting irritating junk lack lacking lacks lame laughable lazy lifeless mediocre
    mess mindless miscast monotonous nonsense numbing obvious overlong painful painfully pathetic
    pointless poor poorly predictable pretentious problem problems redundant repetitive ridiculous
    rubbish sadly shallow silly sloppy slow stale stupid supposed tedious terrible terribly tired
    tiresome trash ugly unbearable unbelievable unconvincing unfortunately uninspired uninteresting
    unfunny unoriginal unpleasant unwatchable vapid waste wasted weak wooden worse worst worthless
    """
)
_NEGATIONS: Final = _words(
    "aren't barely cannot can't couldn't didn't doesn't don't hardly isn't neither never no nor "
    "not nothing wasn't without won't wouldn't"
)
_REACH: Final = 3  # words that a negation inverts
_WORD: Final = re.compile(r"[a-z]+(?:['-][a-z]+)*|[.;:!?]")


def sentiment_of(texts: Sequence[str]) -> str | None:
    """Return ``"positive"`` or ``"negative"`` if a prompt's texts ask for it, else ``None``.

    Args:
        texts: the texts of the messages. In a text with the question, only the part after the
            question counts.
    """
    lowered = [text.lower() for text in texts]
    if not any(QUESTION in text for text in lowered):
        return None
    score = sum(_score(text.rpartition(QUESTION)[2]) for text in lowered)
    # For a text without any such word, the more frequent answer is returned.
    return "positive" if score >= 0 else "negative"


def _score(text: str) -> int:
    """Return the number of words that praise minus the number of words that blame."""
    score = 0
    inverted = 0  # words that the last negation still inverts
    for word in _WORD.findall(text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")):
        value = (word in _POSITIVE) - (word in _NEGATIVE)
        score += -value if inverted else value
        if word in _NEGATIONS:
            inverted = _REACH
        else:
            inverted = 0 if len(word) == 1 and not word.isalpha() else max(0, inverted - 1)
    return score
