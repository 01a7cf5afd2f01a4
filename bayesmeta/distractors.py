"""Wrong answers that look right: what completes the candidate set of a task.

A distractor has the form of the gold answer (same type, same number of decimals) and, for numbers,
the rank of the gold answer among the candidates is drawn uniformly wherever the range allows, so
that neither the form nor the middle position gives the answer away.
"""

import calendar
import hashlib
import itertools
import random
import re
from collections.abc import Callable, Iterable, Sequence

from bayesmeta.verify import canonical

#: Answers that come from a closed set: the distractors are its other members, as written here.
CLOSED_SETS: tuple[tuple[str, ...], ...] = (
    tuple(calendar.day_name),
    tuple(calendar.month_name)[1:],
    ("Yes", "No"),
    ("True", "False"),
    ("heads", "tails"),
    ("valid", "invalid"),
)

_DECIMAL = re.compile(r"([+-]?)([0-9]+)(?:\.([0-9]+))?")
_FRACTION = re.compile(r"([+-]?[0-9]+)/([0-9]+)")
_CLOCK = re.compile(r"([0-9]{1,2}):([0-9]{2})")
_UNIT = re.compile(r"([^\d\s+-]?)([+-]?[0-9]+(?:\.[0-9]+)?)(\s?[^\d\s]+)?")
_LONGEST_NUMBER = 18


def seeded(*key: object) -> random.Random:
    """A generator whose stream depends on the key alone, equal in every process and version."""
    text = "\x1f".join(str(part) for part in key)
    return random.Random(int.from_bytes(hashlib.sha256(text.encode("utf-8", "replace")).digest()))


def distract(
    answer: str,
    seed: object,
    *,
    num: int = 3,
    errors: Iterable[str] = (),
    alternatives: Iterable[str] = (),
    minimum: int | None = None,
) -> tuple[str, ...]:
    """Wrong answers of the same form as the gold answer.

    Args:
      answer: the gold answer. Recognised forms: weekdays, months and the other `CLOSED_SETS`;
        integers, decimals, fractions and clock times; numbers with a unit; lists separated by
        commas (other orders); single words (other orders of their letters).
      seed: anything whose ``str`` is stable, for example the task's id.
      num: how many are wanted. Closed sets may give fewer.
      errors: likely wrong answers, preferred to random near misses where they have the same form.
      alternatives: answers of other tasks, used where the answer itself has no near miss.
      minimum: the smallest number that makes sense. By default 0 for an answer of at least 0,
        else none.

    Returns:
      1 to ``num`` answers, no two of which mean the same, none of which means the gold answer.

    Raises:
      ValueError: no distractor can be made.
    """
    rng = seeded("distract", seed, answer)
    text = answer.strip()
    closed = _closed(text)
    if closed:
        return tuple(rng.sample(closed, min(num, len(closed))))
    errors = list(errors)
    for make in (_near_numbers, _near_fractions, _near_times):
        made = make(text, rng, num, errors, minimum)
        if made:
            return tuple(made)
    pools: tuple[Callable[[], Iterable[str]], ...] = (
        lambda: _shuffled(errors, rng),
        lambda: _near_quantities(text, rng, num, minimum),
        lambda: _list_orders(text, rng),
        lambda: _shuffled(_alike(text, alternatives), rng),
        lambda: _orders(list(text), "", rng) if text.isalpha() and len(text) > 2 else (),
    )
    wrong: list[str] = []
    for pool in pools:
        wrong = _distinct(text, itertools.chain(wrong, pool()), num)
        if len(wrong) == num:
            break
    if not wrong:
        raise ValueError(
            f"no distractor can be made for the answer {answer!r}: it is neither a number, a time, "
            "a date word, a list nor a word. Give the task its own candidates."
        )
    return tuple(wrong)


def candidate_set(answer: str, wrong: Sequence[str], seed: object) -> tuple[str, ...]:
    """The gold answer among its distractors; it is equally likely to stand in each place."""
    candidates = [answer.strip(), *wrong]
    seeded("order", seed).shuffle(candidates)
    return tuple(candidates)


def _distinct(answer: str, texts: Iterable[str], num: int) -> list[str]:
    """The first ``num`` texts that mean different things, none of them the answer."""
    seen, kept = {canonical(answer)}, []
    for text in texts:
        form = canonical(text)
        if form and form not in seen:
            seen.add(form)
            kept.append(text.strip())
            if len(kept) == num:
                break
    return kept


def _shuffled(texts: Iterable[str], rng: random.Random) -> list[str]:
    return rng.sample(pool := list(texts), len(pool))


def _closed(answer: str) -> list[str]:
    """The other members of the answer's closed set, written in the answer's case."""
    for members in CLOSED_SETS:
        if answer.casefold() in (member.casefold() for member in members):
            others = [m for m in members if m.casefold() != answer.casefold()]
            if answer.islower():
                return [m.lower() for m in others]
            return [m.upper() if answer.isupper() else m.capitalize() for m in others]
    return []


def _around(
    gold: int,
    rng: random.Random,
    num: int,
    errors: Iterable[int],
    minimum: int | None,
) -> list[int]:
    """``num`` integers around ``gold``; how many lie below it is drawn uniformly from 0 to num."""
    if minimum is None and gold >= 0:
        minimum = 0
    wide = max(3, abs(gold) // 5)
    steps = [*range(1, 4), 10, *(rng.randint(1, wide) for _ in range(6))]
    if gold > 100:
        steps += [100, 20]
    near = [gold + sign * step for step in steps for sign in (-1, 1)]
    # Likely errors are preferred on their own side of the answer; the sides are balanced below.
    pool = [*_shuffle_ints(errors, rng), *_shuffle_ints(near, rng)]
    pool = [n for n in dict.fromkeys(pool) if n != gold and (minimum is None or n >= minimum)]
    below, above = [n for n in pool if n < gold], [n for n in pool if n > gold]
    num_below = min(rng.randint(0, num), len(below))
    return below[:num_below] + above[: num - num_below]


def _shuffle_ints(numbers: Iterable[int], rng: random.Random) -> list[int]:
    return rng.sample(pool := sorted(set(numbers)), len(pool))


def _near_numbers(
    text: str, rng: random.Random, num: int, errors: Sequence[str], minimum: int | None
) -> list[str]:
    """Integers and decimals, worked on as integers in units of the last decimal."""
    match = _DECIMAL.fullmatch(text)
    if not match or len(text) > _LONGEST_NUMBER:
        return []
    places = len(match[3] or "")
    scale = 10**places
    gold = _scaled(text, places)
    wrong = [_scaled(error, places) for error in errors if _same_places(error, places)]
    floor = None if minimum is None else minimum * scale
    plus = "+" if match[1] == "+" else ""
    # An integer padded with zeros ("007") keeps its width.
    width = len(match[2]) if match[2].startswith("0") and len(match[2]) > 1 else 1
    made = []
    for value in _around(gold, rng, num, wrong, floor):
        whole, part = divmod(abs(value), scale)
        sign = "-" if value < 0 else plus
        made.append(f"{sign}{whole:0{width}d}" + (f".{part:0{places}d}" if places else ""))
    return _distinct(text, made, num)


def _same_places(text: str, places: int) -> bool:
    match = _DECIMAL.fullmatch(text.strip())
    return bool(match) and len(text) <= _LONGEST_NUMBER and len(match[3] or "") == places


def _scaled(text: str, places: int) -> int:
    return int(text.strip().replace(".", "")) if places else int(text)


def _near_fractions(
    text: str, rng: random.Random, num: int, errors: Sequence[str], minimum: int | None
) -> list[str]:
    match = _FRACTION.fullmatch(text)
    if not match or len(text) > _LONGEST_NUMBER or int(match[2]) == 0:
        return []
    top, bottom = int(match[1]), int(match[2])
    near = [
        f"{top + up}/{bottom + down}"
        for up, down in itertools.product(range(-2, 3), range(-2, 3))
        if bottom + down > 1 and (top + up > 0) == (top > 0) and top + up != 0
    ]
    alike = [error for error in errors if _FRACTION.fullmatch(error.strip())]
    return _distinct(text, [*_shuffled(alike, rng), *_shuffled(near, rng)], num)


def _near_times(
    text: str, rng: random.Random, num: int, errors: Sequence[str], minimum: int | None
) -> list[str]:
    """Clock times HH:MM, as minutes; hours may exceed 24 for durations."""
    match = _CLOCK.fullmatch(text)
    if not match or int(match[2]) > 59:
        return []
    gold, width = int(match[1]) * 60 + int(match[2]), len(match[1])
    steps = [1, 2, 5, 10, 20, 30, 40, 60, 70, rng.randint(1, 59), rng.randint(61, 119)]
    below = _shuffle_ints((gold - step for step in steps if gold >= step), rng)
    above = _shuffle_ints((gold + step for step in steps), rng)
    num_below = min(rng.randint(0, num), len(below))
    near = [*below[:num_below], *above[: num - num_below]]
    return _distinct(text, (f"{m // 60:0{width}d}:{m % 60:02d}" for m in near), num)


def _near_quantities(text: str, rng: random.Random, num: int, minimum: int | None) -> Iterable[str]:
    """Numbers with one sign before them or one unit after them, such as ``$5`` and ``12 days``."""
    match = _UNIT.fullmatch(text)
    if not match or not (match[1] or match[3]):
        return []
    near = _near_numbers(match[2], rng, num, (), minimum)
    return [f"{match[1]}{number}{match[3] or ''}" for number in near]


def _list_orders(text: str, rng: random.Random) -> Iterable[str]:
    """Other orders of a comma-separated list, inside its brackets if it has them."""
    opening, inside, closing = "", text, ""
    if len(text) > 2 and text[0] + text[-1] in ("[]", "()", "{}"):
        opening, inside, closing = text[0], text[1:-1], text[-1]
    if any(bracket in inside for bracket in "[](){}"):
        return []
    orders = _orders(re.split(r",\s*", inside), ", " if ", " in inside else ",", rng)
    return (opening + order + closing for order in orders)


def _orders(items: Sequence[str], joint: str, rng: random.Random) -> Iterable[str]:
    """Other orders of the items: reversed or with neighbours swapped first, then any."""
    if not 2 <= len(items) <= 60:
        return
    swaps = []
    for i in range(len(items) - 1):
        swapped = list(items)
        swapped[i], swapped[i + 1] = swapped[i + 1], swapped[i]
        swaps.append(swapped)
    if joint:
        swaps.append(list(items)[::-1])
    for order in _shuffled_lists(swaps, rng):
        yield joint.join(order)
    for _ in range(20):
        yield joint.join(rng.sample(list(items), len(items)))


def _shuffled_lists(lists: list[list[str]], rng: random.Random) -> list[list[str]]:
    return rng.sample(lists, len(lists))


def _alike(answer: str, others: Iterable[str]) -> list[str]:
    """Other answers with the answer's number of words, or all of them where too few have it."""
    pool = [other for other in dict.fromkeys(others) if canonical(other) != canonical(answer)]
    words = len(answer.split())
    alike = [other for other in pool if len(other.split()) == words]
    return alike if len(alike) >= 3 else pool
