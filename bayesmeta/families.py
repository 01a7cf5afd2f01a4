"""Tasks from the generators of reasoning_gym (Stojanovski et al. 2025): seeded, short, checked."""

import dataclasses
import difflib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from bayesmeta.distractors import candidate_set, distract, seeded
from bayesmeta.family_recipes import FAMILIES, Draft
from bayesmeta.features import question_features
from bayesmeta.tasks import HELD_OUT, REFLECT, Task
from bayesmeta.verify import UNSAFE_SCORERS, canonical, verify

#: Datasets whose labels or scorers are wrong, with what is wrong.
WRONG_UPSTREAM: Mapping[str, str] = {
    "puzzle24": "its scorer accepts wrong answers",
    "syllogism": "some of its labels are wrong",
}
_LONGEST_ANSWER = 40
_LONGEST_QUESTION = 1200
# Items are drawn from one seeded stream until enough are kept; this many per wanted task at most.
_DRAWS_PER_TASK = 60
# Usable items in a row that only repeat earlier questions: the family is exhausted.
_MOST_FRUITLESS = 2000


class FamilyError(ValueError):
    """A family that does not exist, or that cannot give the tasks that were asked for."""


def families() -> dict[str, str]:
    """The tuned families by name, each with one line on what it asks; the default set comes first.

    `make_tasks` also takes any other dataset of reasoning_gym whose answers are short texts.
    """
    ordered = sorted(FAMILIES, key=lambda name: not FAMILIES[name].default)
    return {name: FAMILIES[name].description for name in ordered}


def default_families() -> tuple[str, ...]:
    """The ten families that `make_tasks` uses when none is named."""
    return tuple(name for name, family in FAMILIES.items() if family.default)


def make_tasks(
    families: Iterable[str] | str | None = None,
    num_per_family: int = 20,
    seed: int = 0,
    held_out_fraction: float = 0.4,
) -> list[Task]:
    """Draws tasks, each with its gold answer among up to three seeded distractors.

    Task ``family-seed-index`` is the same whatever ``num_per_family`` is; only the split depends
    on it. No two tasks of a family ask the same question, so neither do the two splits.

    Args:
      families: names from `families`, or of other reasoning_gym datasets; default: see
        `default_families`.
      num_per_family: how many tasks of each.
      seed: selects the tasks, their distractors, the order of the candidates and the split.
      held_out_fraction: between 0 and 1; ``round(held_out_fraction * num_per_family)`` tasks of
        each family are held out, and a family is a domain.

    Raises:
      FamilyError: unknown name, a dataset known to be wrong, or one that cannot give that many
        distinct short questions with distractors.
      ImportError: reasoning_gym is not installed.
    """
    if families is None:
        names: Sequence[str] = default_families()
    else:
        names = [families] if isinstance(families, str) else list(dict.fromkeys(families))
    if num_per_family < 1:
        raise ValueError(f"num_per_family must be at least 1, got {num_per_family}.")
    tasks: list[Task] = []
    for name in names:
        tasks += _family_tasks(name, num_per_family, seed)
    return assign_splits(tasks, held_out_fraction, seed)


def assign_splits(tasks: Iterable[Task], held_out_fraction: float, seed: object) -> list[Task]:
    """Copies of the tasks, of which ``round(held_out_fraction * n)`` per domain are held out."""
    if not 0 <= held_out_fraction <= 1:
        raise ValueError(
            f"held_out_fraction must be between 0 and 1, got {held_out_fraction}. "
            "Use 0.4 to judge on two tasks in five."
        )
    tasks = list(tasks)
    held_out: set[str] = set()
    for domain in dict.fromkeys(task.domain for task in tasks):
        ids = [task.id for task in tasks if task.domain == domain]
        held_out.update(
            seeded("split", domain, seed).sample(ids, round(held_out_fraction * len(ids)))
        )
    return [
        dataclasses.replace(task, split=HELD_OUT if task.id in held_out else REFLECT)
        for task in tasks
    ]


def _family_tasks(name: str, num: int, seed: int) -> list[Task]:
    tasks: list[Task] = []
    questions: set[str] = set()
    reasons: dict[str, int] = {}
    fruitless = 0
    for draft, metadata in _drafts(name, seed, num * _DRAWS_PER_TASK + 200, reasons):
        fruitless += 1
        if fruitless > _MOST_FRUITLESS:
            break
        question = canonical(draft.question)
        if question in questions:
            _count(reasons, "repeat an earlier question")
            continue
        questions.add(question)
        try:
            task = _task(name, f"{name}-{seed}-{len(tasks)}", draft, metadata)
        except ValueError:
            _count(reasons, "have an answer for which no distractor can be made")
            continue
        fruitless = 0
        tasks.append(task)
        if len(tasks) == num:
            return tasks
    why = "; ".join(f"{count} {reason}" for reason, count in reasons.items())
    raise FamilyError(
        f"the family {name!r} gave {len(tasks)} usable tasks, {num} were asked for: {why}. "
        "Ask for fewer, or use another family."
    )


def _task(name: str, task_id: str, draft: Draft, metadata: Mapping[str, Any]) -> Task:
    """The task of a draft; ValueError where no distractor can be made for its answer."""
    carried = {key: value for key, value in metadata.items() if key != "alternatives"}

    def with_distractors(wrong: Sequence[str]) -> Task:
        return Task(
            id=task_id,
            question=draft.question,
            answer=draft.answer,
            candidates=candidate_set(draft.answer, wrong, task_id),
            domain=name,
            features=question_features(draft.question),
            verifier=draft.verifier,
            metadata={"dataset": name, **carried},
        )

    if draft.options:
        return with_distractors([option for option in draft.options if option != draft.answer])
    best: list[str] = []
    for attempt in range(5):
        wrong = distract(
            draft.answer,
            f"{task_id}/{attempt}" if attempt else task_id,
            errors=draft.errors,
            alternatives=metadata.get("alternatives", ()),
            minimum=draft.minimum,
        )
        # Upstream scorers have tolerances of their own: what they accept is no wrong answer.
        judge = with_distractors(wrong)
        wrong = [text for text in wrong if not verify(judge, f"Answer: {text}")]
        best = max(best, wrong, key=len)
        if len(best) == 3 or draft.verifier != "reasoning_gym":
            break
    return with_distractors(best)


def _drafts(
    name: str, seed: int, draws: int, reasons: dict[str, int]
) -> Iterator[tuple[Draft, dict[str, Any]]]:
    """Usable items of the seeded stream, with the metadata that their tasks shall carry."""
    dataset = _dataset(name, seed, draws)
    family = FAMILIES.get(name)
    rng = seeded("draft", name, seed)
    pool: list[str] = []
    for index in range(draws):
        item = dataset[index]
        if family is not None:
            draft = family.draft(item, rng)
            if draft is None:
                _count(reasons, "cannot be vouched for")
                continue
            yield draft, {"source_index": index}
            continue
        reason = _unusable(item)
        if reason:
            _count(reasons, reason)
            if index > 300 and not pool:
                return
            continue
        if not pool:  # what other items of the family answer, for distractors
            pool = _answers(dataset, draws)
        answer, question = item["answer"].strip(), item["question"].strip()
        entry = _judged_upstream(name, item)
        # Few different answers in the whole pool are the options that the question leaves open.
        options = tuple(pool) if 2 <= len(pool) <= 4 and answer in pool else ()
        verifier = "reasoning_gym" if entry else "exact"
        draft = Draft(question, answer, options=options, verifier=verifier)
        extra: dict[str, Any] = {"source_index": index, "alternatives": rng.sample(pool, len(pool))}
        yield draft, extra | ({"entry": entry} if entry else {})


def _dataset(name: str, seed: int, size: int) -> Any:
    if name in WRONG_UPSTREAM:
        raise FamilyError(
            f"the reasoning_gym dataset {name!r} is not used: {WRONG_UPSTREAM[name]}. "
            f"Choose among {', '.join(families())}."
        )
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    if name not in DATASETS:
        close = difflib.get_close_matches(name, [*FAMILIES, *DATASETS], n=3, cutoff=0.5)
        hint = f"Did you mean {' or '.join(map(repr, dict.fromkeys(close)))}? " if close else ""
        raise FamilyError(
            f"there is no family {name!r}. {hint}Tuned families: {', '.join(families())}; "
            "any other reasoning_gym dataset with short answers works by its name."
        )
    config = dict(FAMILIES[name].config) if name in FAMILIES else {}
    # Upstream items with seeds s and s + 1 overlap (item i of one is item i + 1 of the other):
    # far-apart seeds make the streams of different seeds distinct.
    start = seeded("family", name, seed).randrange(2**30)
    try:
        return reasoning_gym.create_dataset(name, seed=start, size=size, **config)
    except Exception as error:  # some datasets need data or packages that are not there
        raise FamilyError(
            f"the reasoning_gym dataset {name!r} cannot be made: {error}. Use another family."
        ) from error


def _unusable(item: Mapping[str, Any]) -> str | None:
    question, answer = item.get("question"), item.get("answer")
    if not isinstance(answer, str) or not answer.strip():
        return "have no gold answer in words"
    if len(answer.strip()) > _LONGEST_ANSWER or "\n" in answer.strip():
        return f"have an answer of more than {_LONGEST_ANSWER} characters or several lines"
    if not isinstance(question, str) or len(question) > _LONGEST_QUESTION:
        return f"have a question of more than {_LONGEST_QUESTION} characters"
    return None


def _answers(dataset: Any, draws: int) -> list[str]:
    items = (dataset[index] for index in range(min(draws, 60)))
    return sorted({item["answer"].strip() for item in items if _unusable(item) is None})


def _judged_upstream(name: str, item: Mapping[str, Any]) -> dict[str, Any] | None:
    """The item as its own scorer takes it, if it can be kept as JSON and its gold answer passes."""
    if name in UNSAFE_SCORERS:
        return None
    import reasoning_gym

    try:
        kept = {key: item[key] for key in ("question", "answer", "metadata")}
        entry = json.loads(json.dumps(kept, allow_nan=False))
        score: Any = reasoning_gym.get_score_answer_fn(name)
        return entry if float(score(entry["answer"].strip(), entry)) == 1.0 else None
    except Exception:  # not JSON, or a scorer that needs the types that JSON does not keep
        return None


def _count(reasons: dict[str, int], reason: str) -> None:
    reasons[reason] = reasons.get(reason, 0) + 1
