"""Features x_n of a question: cheap, read from its text alone and never from the answer."""

import math
import re
from collections.abc import Mapping

#: Every feature with its unit.
FEATURES: Mapping[str, str] = {
    "log_length": "natural logarithm of the number of characters",
    "log_numbers": "natural logarithm of one plus the count of numbers written in digits",
    "log_largest": "natural logarithm of one plus the largest absolute value of these numbers",
    "digit_share": "share of the characters other than white space that are digits, 0 to 1",
}

_NUMBER = re.compile(r"[0-9][0-9,]*(?:\.[0-9]+)?")


def question_features(text: str) -> dict[str, float]:
    """Features of a question, named and in the units of `FEATURES`; all finite and at least 0.

    They are raw: models standardise them, so their scale does not matter.
    """
    numbers = _NUMBER.findall(text)
    visible = "".join(text.split())
    return {
        "log_length": math.log(max(len(text), 1)),
        "log_numbers": math.log1p(len(numbers)),
        "log_largest": max((_log1p(number) for number in numbers), default=0.0),
        "digit_share": sum("0" <= c <= "9" for c in visible) / max(len(visible), 1),
    }


def _log1p(number: str) -> float:
    whole, _, part = number.replace(",", "").partition(".")
    whole = whole.lstrip("0")
    if len(whole) > 300:  # beyond float: the count of digits is exact enough
        return len(whole) * math.log(10)
    return math.log1p(float(f"{whole or '0'}.{part or '0'}"))
