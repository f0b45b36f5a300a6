"""The same question, written otherwise: seeded changes of a row's text that leave its answer right.

Liang et al. 2022, arXiv:2211.09110, on robustness: a model should answer as before. Ask the rows as they are
and every change of them, and take `metrics.groups.worst_case` of the rows of numbers.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from random import Random

from acclimate.data.examples import Example
from acclimate.errors import DataError

Change = Callable[[str, Random], str]

RATE = 0.1  # of the words that can be misspelt
SHORTEST = 4  # letters of a word that is misspelt; its first and last one stay
WORD = re.compile(r"[^\W\d_]+")
GAP = re.compile(r"(?<=\S) (?=\S)")
MOST_SPACES = 3

CONTRACTIONS: Mapping[str, str] = {
    **{"is not": "isn't", "are not": "aren't", "was not": "wasn't", "were not": "weren't", "do not": "don't"},
    **{"does not": "doesn't", "did not": "didn't", "have not": "haven't", "has not": "hasn't", "had not": "hadn't"},
    **{"will not": "won't", "would not": "wouldn't", "could not": "couldn't", "should not": "shouldn't"},
    **{"cannot": "can't", "must not": "mustn't", "need not": "needn't", "i am": "i'm", "i have": "i've"},
    **{"i will": "i'll", "you are": "you're", "you have": "you've", "you will": "you'll", "we are": "we're"},
    **{"we have": "we've", "we will": "we'll", "they are": "they're", "they have": "they've", "they will": "they'll"},
}  # not 's and 'd: each is short for two things


def typos(text: str, random: Random) -> str:
    """One word of ten with two inner neighbours swapped, a letter left out, or a letter doubled.

    >>> typos("a wonderful film with marvellous actors and forgettable music", Random(3))
    'a wonderful film with marvellous actors and frgettable music'
    """

    def misspelt(found: re.Match[str]) -> str:
        word = found[0]
        return _slip(word, random) if len(word) >= SHORTEST and random.random() < RATE else word

    return WORD.sub(misspelt, text)


def lower(text: str, random: Random) -> str:
    """All in lower case."""
    return text.lower()


def upper(text: str, random: Random) -> str:
    """All in upper case."""
    return text.upper()


def contracted(text: str, random: Random) -> str:
    """Short forms for long ones: do not → don't.

    >>> contracted("I am sure they Do not", Random(0))
    "I'm sure they Don't"
    """
    return swapped_words(text, CONTRACTIONS)


def expanded(text: str, random: Random) -> str:
    """Long forms for short ones: don't → do not.

    >>> expanded("Can’t you see they're late?", Random(0))
    'Cannot you see they are late?'
    """
    return swapped_words(text.replace("’", "'"), {short: long for long, short in CONTRACTIONS.items()})


def spaced(text: str, random: Random) -> str:
    """One to three spaces where there was one between two words.

    >>> spaced("it is very cold", Random(1))
    'it is   very cold'
    """
    return GAP.sub(lambda found: " " * random.randint(1, MOST_SPACES), text)


PERTURBATIONS: Mapping[str, Change] = {
    change.__name__: change for change in (typos, lower, upper, contracted, expanded, spaced)
}


def seeded(name: str, seed: int) -> Callable[[str], str]:
    """One of PERTURBATIONS as a change that depends on the seed and the text alone, not on other rows."""
    return lambda text: PERTURBATIONS[name](text, Random(f"{seed} {text}"))


def rewritten(example: Example, change: Callable[[str], str], columns: Iterable[str] = ()) -> Example:
    """The example with `change` made to its prompt and to the columns; target and references stay.

    columns: those a template asks the question with. DataError where one of them is no text.
    """
    fields = dict(example.fields)
    for column in columns:
        if not isinstance(fields.get(column), str):
            raise DataError(f"{example.where or 'An example'} has no text in column {column!r} to change.")
        fields[column] = change(fields[column])
    return replace(example, prompt=change(example.prompt), fields=fields)


def swapped_words(text: str, others: Mapping[str, str]) -> str:
    """Whole words replaced by others, given in lower case; a capital at the front, or all of them, is kept.

    >>> swapped_words("Her MOM, her motto", {"her": "his", "mom": "dad"})
    'His DAD, his motto'
    """
    longest = sorted(others, key=len, reverse=True)
    known = re.compile(r"(?<![\w'])(?:" + "|".join(map(re.escape, longest)) + r")(?![\w'])", re.IGNORECASE)
    return known.sub(lambda found: in_case_of(found[0], others[found[0].lower()]), text)


def in_case_of(old: str, new: str) -> str:
    """`new` with the capitals of `old`.

    >>> in_case_of("MOM", "dad"), in_case_of("Mom", "dad"), in_case_of("I", "you")
    ('DAD', 'Dad', 'You')
    """
    if old.isupper() and len(old) > 1:
        return new.upper()
    return new[:1].upper() + new[1:] if old[:1].isupper() else new


def _slip(word: str, random: Random) -> str:
    i = random.randrange(1, len(word) - 2)
    kind = random.randrange(3)
    inner = (word[i + 1] + word[i], word[i + 1], word[i] + word[i : i + 2])[kind]
    return word[:i] + inner + word[i + 2 :]
