"""Numbers and lists as words, the same way everywhere on the page."""

import math
from collections.abc import Sequence

MISSING = "—"
_MINUS = "−"
_NARROW = "\N{NARROW NO-BREAK SPACE}"  # between a number and its unit, where no line may break


def number(value: float, digits: int = 3) -> str:
    """A number with fixed digits and a true minus sign; a dash for NaN.

    >>> number(-0.12345), number(float("nan")), number(-0.0001)
    ('−0.123', '—', '0.000')
    """
    if not math.isfinite(value):
        return MISSING
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    return text.replace("-", _MINUS)


def signed(value: float, digits: int = 3) -> str:
    """A difference, always with its sign.

    >>> signed(0.5), signed(-0.5)
    ('+0.500', '−0.500')
    """
    text = number(value, digits)
    return f"+{text}" if math.isfinite(value) and float(f"{value:.{digits}f}") > 0 else text


def interval(low: float, high: float, digits: int = 3) -> str:
    """An interval in brackets; nothing where there is none.

    >>> interval(-0.1, 0.25, 2), interval(float("nan"), float("nan"))
    ('[−0.10, 0.25]', '')
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        return ""
    return f"[{number(low, digits)}, {number(high, digits)}]"


def percent(share: float, digits: int = 1) -> str:
    r"""A share in percent; trailing zeros are dropped.

    >>> percent(0.973), percent(0.1), percent(1 / 3, 2)
    ('97.3\u202f%', '10\u202f%', '33.33\u202f%')
    """
    if not math.isfinite(share):
        return MISSING
    text = f"{100 * share:.{digits}f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return f"{text}{_NARROW}%".replace("-", _MINUS)


def probability(value: float) -> str:
    """A p value; small ones are not given with false precision.

    >>> probability(0.0312), probability(1e-9)
    ('p = 0.031', 'p < 0.001')
    """
    if not math.isfinite(value):
        return ""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def count(amount: int, singular: str, plural: str | None = None) -> str:
    """An amount and its noun.

    >>> count(1, "method"), count(12000, "image")
    ('1 method', '12,000 images')
    """
    return f"{amount:,} {singular if amount == 1 else plural or singular + 's'}"


def listed(names: Sequence[str], last: str = "and") -> str:
    """Names as a phrase.

    >>> listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"], "or")
    ('a', 'a and b', 'a, b or c')
    """
    if len(names) <= 1:
        return "".join(names)
    return f"{', '.join(names[:-1])} {last} {names[-1]}"


LEAKS = "the masks alone reveal the class: not to be read as faithfulness"


def marks(not_better_than: Sequence[str], not_testable_against: Sequence[str] = (), leaks: bool = False) -> list[str]:
    """What has to be said of a method's score: the words of all its marks, wherever they are shown.

    >>> marks(["random", "sobel"], ["centre"])
    ['not better than random or sobel', 'too few runs or images to compare it with centre']
    """
    return [
        *([LEAKS] if leaks else []),
        *([f"not better than {listed(not_better_than, 'or')}"] if not_better_than else []),
        *(
            [f"too few runs or images to compare it with {listed(not_testable_against)}"]
            if not_testable_against
            else []
        ),
    ]


def duration(seconds: float) -> str:
    """A time that a person can grasp.

    >>> duration(0.42), duration(75), duration(7384)
    ('0.4 s', '1 min 15 s', '2 h 3 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = int(seconds) // 60
    if minutes < 60:
        return f"{minutes} min {int(seconds) % 60} s"
    return f"{minutes // 60} h {minutes % 60} min"
