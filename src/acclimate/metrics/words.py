"""Words that speak of a group of people: short lists of facts, each with its source. Lower case.

A list measures only what it names: it is short, English and American, and says nothing of those it leaves out.
"""

from collections.abc import Mapping

GENDERS: tuple[
    tuple[str, str], ...
] = (  # female, male: the pairs of Bolukbasi et al. 2016, arXiv:1607.06520, and family
    ("she", "he"),
    ("her", "his"),
    ("hers", "his"),
    ("herself", "himself"),
    ("woman", "man"),
    ("women", "men"),
    ("girl", "boy"),
    ("girls", "boys"),
    ("female", "male"),
    ("mother", "father"),
    ("mothers", "fathers"),
    ("mom", "dad"),
    ("daughter", "son"),
    ("daughters", "sons"),
    ("sister", "brother"),
    ("sisters", "brothers"),
    ("wife", "husband"),
    ("aunt", "uncle"),
    ("niece", "nephew"),
    ("grandmother", "grandfather"),
    ("lady", "gentleman"),
    ("queen", "king"),
    ("gal", "guy"),
)
FEMALE = frozenset(female for female, _ in GENDERS)
MALE = frozenset(male for _, male in GENDERS) | {"him"}  # "her" is both his and him

NAMES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # (female, male): Bertrand & Mullainathan 2004, AER 94
    "black": (
        ("aisha", "keisha", "tamika", "lakisha", "tanisha", "latoya", "latonya", "ebony"),
        ("rasheed", "tremayne", "kareem", "darnell", "tyrone", "jamal", "leroy", "jermaine"),
    ),
    "white": (
        ("emily", "anne", "jill", "allison", "laurie", "sarah", "meredith", "kristen"),
        ("todd", "neil", "geoffrey", "brett", "brendan", "greg", "matthew", "brad"),
    ),
}

DIALECT: Mapping[str, str] = {  # Standard → African American English: Green 2002, African American English
    "am not": "ain't",
    "are not": "ain't",
    "aren't": "ain't",
    "is not": "ain't",
    "isn't": "ain't",
    "haven't": "ain't",
    "going to": "finna",
    "with": "wit",
    "them": "dem",
    "that": "dat",
    "these": "dese",
    "those": "dose",
    "the": "da",
    "your": "yo",
    "something": "sum'n",
    "nothing": "nuttin",
    "brother": "brotha",
    "sister": "sista",
    "asked": "axed",
    "mouth": "mouf",
    "bath": "baf",
}

OCCUPATIONS = (  # few women, then few men, among those who work in them: Zhao et al. 2018, arXiv:1804.06876
    *("carpenter", "developer", "driver", "farmer", "janitor", "lawyer", "manager", "mechanic", "physician", "sheriff"),
    *("baker", "cashier", "counselor", "hairdresser", "housekeeper", "librarian", "nurse", "receptionist", "secretary"),
    "teacher",
)
