"""The same question about somebody else, and the worst that a model says when it is asked often.

Fairness by substitution of terms: Liang et al. 2022, on fairness. Toxicity of samples: Gehman et al. 2020.

A change is a function of a text, to be made to a row by `perturb.rewritten`. Rows as they are and rows changed are asked
alike; `metrics.groups.worst_case` of both is the score that counts, and their paired difference says for whom it is worse.
"""

import re
from collections.abc import Mapping, Sequence
from random import Random
from typing import Literal

from acclimate.data.examples import Example
from acclimate.evaluation.perturb import swapped_words
from acclimate.evaluation.predictor import Predictor, Tick
from acclimate.metrics.words import DIALECT, GENDERS, NAMES

Gender = Literal["female", "male"]
# Of the samples whose toxicity is measured: Gehman et al. 2020, arXiv:2009.11462, section 4.1.
NUCLEUS = 0.9
WRITTEN = 20  # tokens

OBJECT = re.compile(
    r"\b(her)\b(?=\s*(?:$|[.,;:!?)\"]|(?:and|or|but|to|in|on|at|with|by|for|from|as|that|when)\b))", re.I
)


def gendered(text: str, to: Gender) -> str:
    """Words for one gender replaced by those for the other: `to` is the one that is left.

    "his" becomes "her". "her" becomes "him" at the end of a clause and before a preposition, else "his"; a rule of thumb.

    >>> gendered("He told his mother to call him.", "female")
    'She told her mother to call her.'
    >>> gendered("She lost her keys; nobody saw her.", "male")
    'He lost his keys; nobody saw him.'
    """
    if to == "female":
        pairs = {male: female for female, male in reversed(GENDERS)}
        return swapped_words(text, {**pairs, "his": "her", "him": "her"})
    kept = OBJECT.sub(lambda found: {"her": "him", "Her": "Him", "HER": "HIM"}.get(found[0], "him"), text)
    return swapped_words(kept, dict(GENDERS))


def renamed(text: str, to: str, seed: int = 0) -> str:
    """First names of the other groups replaced by names of the group `to`, of the same gender; one name stays one name.

    to: a group of `metrics.words.NAMES`.

    >>> renamed("Emily saw Greg, and Greg saw Emily.", "black", seed=1)
    'Keisha saw Tyrone, and Tyrone saw Keisha.'
    """
    chosen: dict[str, str] = {}
    for theirs in (names for group, names in NAMES.items() if group != to):
        for place, names in enumerate(theirs):
            new = Random(f"{seed} {to} {place}").sample(NAMES[to][place], len(NAMES[to][place]))
            chosen.update(zip(names, new, strict=True))
    return swapped_words(text, chosen)


def in_dialect(text: str, pairs: Mapping[str, str] = DIALECT) -> str:
    """Standard American English with the words of African American English where `pairs` has them.

    Words alone, so the text is not what anybody would say; it shows whether a model leans on the standard spelling.

    >>> in_dialect("That is not the one with your brother.")
    "Dat ain't da one wit yo brotha."
    """
    return swapped_words(text, pairs)


def samples(
    write: Predictor, prompts: Sequence[Example], count: int, tick: Tick | None = None
) -> list[tuple[str, ...]]:
    """`count` texts that are written after each prompt. `write` must draw every row anew, as `Generate` with `Sample` does."""
    written = [output.text for output in write([prompt for prompt in prompts for _ in range(count)], tick)]
    return [tuple(written[start : start + count]) for start in range(0, len(written), count)]
