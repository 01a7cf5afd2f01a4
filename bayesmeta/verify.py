"""Judging a free answer: read the answer out of the text, then compare it with the gold answer."""

import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from bayesmeta.tasks import Task

_MARKER = re.compile(r"answer\**[ \t]*(?:is\b|:|=)[ \t]*:?\**[ \t]*(.*)", re.IGNORECASE)
_HASHES = re.compile(r"####[ \t]*(.+)")
_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
_NUMBER = re.compile(
    r"[+-]?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)(?:/[0-9]+)?"
)
_NUMBER_IN_TEXT = re.compile(
    r"(?<![\w.])[+-]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?(?:/[0-9]+)?(?![\w])"
)
_CLOCK = re.compile(r"([0-9]{1,2}):([0-9]{2})(?::([0-9]{2}))?")
_LIST = re.compile(r"\s*[,;]\s*")
# Longer strings of digits are text to us: exact arithmetic on them is slow, and no answer has them.
_LONGEST_NUMBER = 60


def parse_number(text: str) -> Fraction | None:
    """Reads ``4``, ``-4.50``, ``1,200``, ``$5``, ``20%`` or ``2/4`` exactly, else None."""
    bare = text.strip().replace("\u2212", "-").strip("$€£% ")
    if len(bare) > _LONGEST_NUMBER or not _NUMBER.fullmatch(bare):
        return None
    numerator, _, denominator = bare.replace(",", "").partition("/")
    if denominator and int(denominator) == 0:
        return None
    return Fraction(numerator) / int(denominator or 1)


def canonical(text: str) -> str:
    """The same string for every form of one answer.

    Case, white space, quotation marks, markdown emphasis and a final full stop do not count.
    Numbers are compared by value (``4``, ``4.0``, ``04`` and ``8/2`` agree), clock times by their
    parts (``4:05`` and ``04:05`` agree) and comma-separated lists item by item.
    """
    bare = " ".join(text.split()).strip("*_`\"' ").rstrip(".!").strip("*_`\"' ").casefold()
    number = parse_number(bare)
    if number is not None:
        return str(number)
    clock = _CLOCK.fullmatch(bare)
    if clock:
        return ":".join(str(int(part)) for part in clock.groups() if part is not None)
    if len(bare) > 2 and bare[0] + bare[-1] in ("[]", "()"):
        bare = bare[1:-1]
    items = _LIST.split(bare)
    if len(items) > 1:
        return ", ".join(canonical(item) for item in items)
    return bare


def same_answer(first: str, second: str) -> bool:
    """Whether two texts are the same answer in the sense of `canonical`."""
    return canonical(first) == canonical(second)


def extract_answer(text: str) -> str:
    r"""Reads the answer out of a free text. The first rule that finds something wins.

    1. What follows the last ``Answer:`` (also ``Final answer is``, ``answer =``) on its line.
    2. What stands in the last ``\boxed{...}``.
    3. What follows the last ``####``.
    4. The last line that is not empty.

    White space, markdown emphasis, quotation marks and a final full stop are removed.
    Returns ``""`` for a text without any word.
    """
    for pattern in (_MARKER, _BOXED, _HASHES):
        found = [match for match in pattern.findall(text) if match.strip(" *_`\"'.")]
        if found:
            return _bare(found[-1])
    lines = [line for line in text.splitlines() if line.strip()]
    return _bare(lines[-1]) if lines else ""


def verify(task: Task, text: str) -> bool:
    """Whether a free answer to a task is right, judged by the task's verifier.

    Args:
      task: ``task.verifier`` names one of `VERIFIERS`.
      text: whatever the reasoner wrote; see `extract_answer` for how it is read.

    Raises:
      ValueError: the task names a verifier that does not exist, or one that lacks its metadata.
    """
    judge = VERIFIERS.get(task.verifier)
    if judge is None:
        raise ValueError(
            f"task {task.id!r}: there is no verifier {task.verifier!r}. "
            f"Use one of {sorted(VERIFIERS)}, or add yours to bayesmeta.verify.VERIFIERS."
        )
    return judge(task, extract_answer(text))


def _bare(text: str) -> str:
    return text.strip().strip("*_`\"' ").removesuffix(".").strip("*_`\"' ")


def _exact(task: Task, answer: str) -> bool:
    return same_answer(task.answer, answer)


def _number(task: Task, answer: str) -> bool:
    gold = parse_number(task.answer)
    if gold is None:
        raise ValueError(
            f"task {task.id!r}: the verifier 'number' needs a gold answer that is a number, "
            f"got {task.answer!r}. Use the verifier 'exact'."
        )
    given = parse_number(answer)
    if given is None:
        inside = _NUMBER_IN_TEXT.findall(answer.replace("\u2212", "-"))
        given = parse_number(inside[-1]) if inside else None
    return given == gold


def _choice(task: Task, answer: str) -> bool:
    """One of the candidates: alone, or as the only one that the answer mentions."""
    given = canonical(answer)
    options = {canonical(candidate): candidate for candidate in task.candidates}
    if given in options:
        return options[given] == task.answer
    mentioned = [
        option for option in options if re.search(rf"(?<!\w){re.escape(option)}(?!\w)", given)
    ]
    # "only Ann" also mentions "Ann": what lies inside a longer option is not a second mention.
    longest = [
        option for option in mentioned if not any(option in o and option != o for o in mentioned)
    ]
    return len(longest) == 1 and options[longest[0]] == task.answer


#: Datasets of reasoning_gym whose scorer runs the text it judges as Python code, or accepts wrong
#: answers. What a language model wrote is data, so these are never called.
UNSAFE_SCORERS = frozenset(
    "binary_matrix bitwise_arithmetic codeio countdown intermediate_integration n_queens "
    "number_sorting polynomial_multiplication puzzle24 simple_integration spiral_matrix "
    "string_insertion syllogism".split()
)


def _reasoning_gym(task: Task, answer: str) -> bool:
    """The dataset's own scorer; partial credit is not success."""
    name, entry = task.metadata.get("dataset"), task.metadata.get("entry")
    if not isinstance(name, str) or not isinstance(entry, dict) or "answer" not in entry:
        raise ValueError(
            f"task {task.id!r}: the verifier 'reasoning_gym' needs metadata with 'dataset' (name) "
            f"and 'entry' (question, answer, metadata), got {sorted(task.metadata)}. "
            "Make the task with bayesmeta.families.make_tasks, or use the verifier 'exact'."
        )
    if name in UNSAFE_SCORERS:
        raise ValueError(
            f"task {task.id!r}: the scorer of {name!r} is not safe or not right to call on "
            "free text. Use the verifier 'exact'."
        )
    import reasoning_gym

    score: Any = reasoning_gym.get_score_answer_fn(name)
    try:
        return float(score(answer, entry)) == 1.0
    except Exception:  # upstream scorers raise all sorts of errors on text they cannot read
        return False


#: Judges by name: each takes the task and the extracted answer.
VERIFIERS: dict[str, Callable[[Task, str], bool]] = {
    "exact": _exact,
    "number": _number,
    "choice": _choice,
    "reasoning_gym": _reasoning_gym,
}
