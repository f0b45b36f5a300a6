"""Numbers and foreign text as people read them: sensible digits, units, nothing invisible, nothing endless."""

import math
import re
from collections.abc import Mapping
from typing import Any

MINUS = "−"
_PROPER = {
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "rougel": "ROUGE-L",
    "rougeLsum": "ROUGE-Lsum",
    "bleu": "BLEU",
    "macro_f1": "macro-F1",
    "f1": "F1",
    "kl": "KL",
    **{name: name.upper() for name in ("ppo", "dpo", "ipo", "kto", "orpo", "grpo", "rloo")},
    "lora": "LoRA",
    "rslora": "rsLoRA",
    "dora": "DoRA",
    "qlora": "QLoRA",
    "mam": "MAM",
    "bitfit": "BitFit",
    "ia3": "(IA)³",
    "unipelt": "UniPELT",
    "did": "DID",
    "said": "SAID",
    "none": "the prompt only",
    "full": "full fine-tuning",
    "houlsby": "Houlsby adapters",
    "pfeiffer": "Pfeiffer adapters",
    "parallel": "parallel adapters",
    "scaled_parallel": "scaled parallel adapters",
    "prefix": "prefix tuning",
    "prompt": "prompt tuning",
    "preembed": "PreEmbed",
    "prelayer": "PreLayer",
    "vera": "VeRA",
    "head": "head-only training",
    "lm": "language modelling",
}
_UNSEEN = re.compile(  # direction marks and overrides, zero-width spaces, tag characters, what is no character
    "[\u061c\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff\ufffe\uffff\U000e0000-\U000e007f]"
)


def at(tree: Any, *keys: str) -> Any:
    """The value under `keys`, or None where the way there ends.

    >>> at({"a": {"b": 1}}, "a", "b"), at({"a": None}, "a", "b")
    (1, None)
    """
    for key in keys:
        if not isinstance(tree, Mapping):
            return None
        tree = tree.get(key)
    return tree


def finite(value: Any) -> float | None:
    """The number, or None for what is not one: absent, text, a truth value, NaN, infinite or past a float's range."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def spoken(name: Any) -> str:
    """A metric's or a method's name in prose.

    >>> spoken("balanced_accuracy"), spoken("rougeL")
    ('balanced accuracy', 'ROUGE-L')
    """
    return _PROPER.get(str(name)) or clean(str(name).replace("_", " "), 60)


def capital(text: str) -> str:
    """First letter raised, the others as they are (`str.capitalize` would lower ROUGE)."""
    return text[:1].upper() + text[1:]


def fixed(value: float, decimals: int, sign: bool = False) -> str:
    """`value` with that many decimals, a true minus, and no minus before a zero.

    >>> fixed(-0.0004, 2), fixed(0.28, 2, sign=True), fixed(-1234.5, 1)
    ('0.00', '+0.28', '−1,234.5')
    """
    text = f"{value:.2g}" if decimals > 6 or abs(value) >= 1e9 else f"{value:,.{decimals}f}"
    if not text.strip("-0.,"):
        return text.lstrip("-")
    prefix = MINUS if value < 0 else "+" if sign else ""
    return prefix + text.lstrip("-")


def decimals(low: float, high: float) -> int:
    """Decimals that show an interval's width with two digits, and neither end as a zero that it is not.

    >>> decimals(0.22, 0.34), decimals(0.0004, 0.2), decimals(-3.0, 4.0)
    (2, 4, 1)
    """
    width = abs(high - low)
    digits = 2 if not width or math.isinf(width) else max(0, 1 - math.floor(math.log10(width)))
    while digits < 7 and any(end and not float(f"{end:.{digits}f}") for end in (low, high)):
        digits += 1
    return min(digits, 7)


def number(value: Any, digits: int = 3) -> str:
    """Any quantity to `digits` significant digits; a dash where there is none.

    >>> number(21.3456), number(1234567), number(0.0005), number(2.5e-7), number(None)
    ('21.3', '1,234,567', '0.0005', '2.5e-7', '–')
    """
    real = finite(value)
    if real is None:
        return "–"
    if isinstance(value, int) and abs(value) < 10**15:
        return f"{value:,}".replace("-", MINUS)
    if real and not 1e-4 <= abs(real) < 1e9:
        mantissa, _, exponent = f"{real:.{digits - 1}e}".partition("e")
        trimmed = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        return f"{trimmed}e{int(exponent)}".replace("-", MINUS, 1) if real < 0 else f"{trimmed}e{int(exponent)}"
    places = max(0, digits - 1 - math.floor(math.log10(abs(real)))) if real else 0
    text = f"{real:,.{places}f}"
    return (text.rstrip("0").rstrip(".") if "." in text and abs(real) < 1e-2 else text).replace("-", MINUS)


def pair(first: float, second: float) -> tuple[str, str]:
    """Two numbers with three digits, or four where it takes as many to tell them apart.

    >>> pair(21.3, 21.94), pair(21.34, 21.31), pair(33.59381, 33.59379)
    (('21.3', '21.9'), ('21.34', '21.31'), ('33.6', '33.6'))
    """
    three, four = ((number(first, digits), number(second, digits)) for digits in (3, 4))
    return four if three[0] == three[1] and four[0] != four[1] else three


def probability(p: float | None) -> str:
    """A p-value; below 0.0001 only that.

    >>> probability(0.0001), probability(0.0), probability(0.614), probability(0.0312)
    ('0.0001', '< 0.0001', '0.61', '0.031')
    """
    if p is None:
        return "–"
    return "< 0.0001" if p < 1e-4 else f"{p:.2f}" if p >= 0.1 else f"{p:.2g}"


def percent(share: float) -> str:
    """A share of one as per cent.

    >>> percent(0.0034), percent(1.0), percent(0.000004)
    ('0.34 %', '100 %', '0.0004 %')
    """
    if share >= 0.9995:
        return f"{min(99.9, share * 100):.1f} %" if share < 1 else f"{share * 100:.0f} %"
    return f"{number(share * 100, 2)} %"


def seconds(value: Any) -> str:
    """A duration in the units a person would use.

    >>> seconds(95.0), seconds(0.42), seconds(725), seconds(12000)
    ('95 s', '0.42 s', '12 min 5 s', '3 h 20 min')
    """
    real = finite(value)
    if real is None:
        return "–"
    if real < 120:
        return f"{number(float(round(real)) if real >= 10 else real, 2 if real < 100 else 3)} s"
    whole = round(real)
    if whole < 7200:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"


def size(count: Any) -> str:
    """Bytes in decimal units.

    >>> size(1500000000), size(921), size(1850000)
    ('1.50 GB', '921 B', '1.85 MB')
    """
    real = finite(count)
    if real is None:
        return "–"
    for unit in ("B", "kB", "MB", "GB"):
        if abs(real) < 999.5:
            return f"{int(real)} B" if unit == "B" else f"{number(real)} {unit}"
        real /= 1000
    return f"{number(real)} TB"


def visible(text: Any) -> str:
    """`text` with nothing in it that acts unseen: controls become pictures, direction marks a code, surrogates �.

    Newlines and tabs stay.
    """
    return _UNSEEN.sub(lambda mark: f"⟨U+{ord(mark[0]):04X}⟩", "".join(map(_shown, str(text).replace("\r\n", "\n"))))


def _shown(letter: str) -> str:
    code = ord(letter)
    if code < 0x20:
        return letter if letter in "\n\t" else chr(0x2400 + code)  # the "control pictures" block
    if code == 0x7F:
        return "␡"
    return "�" if 0x80 <= code < 0xA0 or 0xD800 <= code < 0xE000 else letter


def clean(text: Any, limit: int = 1200) -> str:
    """`visible`, and about `limit` characters at most: the start and the end, with a count of what lies between."""
    raw = str(text)
    if len(raw) <= limit:
        return visible(raw)
    head, tail = limit * 2 // 3, limit // 3
    left_out = f" … [{len(raw) - head - tail:,} characters left out] … "
    return visible(raw[:head]) + left_out + visible(raw[len(raw) - tail :])
