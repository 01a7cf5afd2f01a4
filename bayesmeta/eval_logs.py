"""Tasks and verdicts from the logs of lm-evaluation-harness and of Inspect, read as data.

Read are the ``samples_<task>_<date>.jsonl`` files that lm-evaluation-harness writes with
``--log_samples``, and Inspect's ``.json`` and ``.eval`` logs (a zip archive of JSON files).
Neither package needs to be installed, and nothing in a log is run.
"""

import math
import os
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from bayesmeta.distractors import candidate_set, distract
from bayesmeta.eval_log_files import EvalLogError, inspect_samples, jsonl_samples
from bayesmeta.features import question_features
from bayesmeta.tasks import Task
from bayesmeta.verify import same_answer

OnError = Literal["raise", "skip"]


class Verdict(NamedTuple):
    """One judged attempt; ``pandas.DataFrame(verdicts)`` is a verdict table.

    Attributes:
      task: id of the task, the same as in the tasks read from the log.
      skill: what was tried.
      correct: whether the attempt earned full marks; partial credit is not success.
      domain: the evaluation's task name.
      tokens: input and output tokens of the attempt, where the log has them.
    """

    task: str
    skill: str
    correct: bool
    domain: str
    tokens: int | None


def tasks_from_lm_eval(path: str | os.PathLike[str], on_error: OnError = "raise") -> list[Task]:
    """Tasks from a sample log of lm-evaluation-harness.

    The question is the whole prompt as it was given. Multiple-choice samples use their options;
    samples with a generated answer get distractors, and their target is what follows its last
    ``####`` if it has one. A task's id is ``<task name>-<doc_id>``, its domain the task name.

    Args:
      on_error: ``"skip"`` leaves bad samples out and lists them in one warning.

    Raises:
      EvalLogError: a bad sample (with ``"raise"``), or a file without a usable one.
    """
    domain = _lm_eval_name(path)
    seen: set[object] = set()

    def read(sample: Mapping[str, Any]) -> Task | None:
        if sample["doc_id"] in seen:  # once per filter
            return None
        seen.add(sample["doc_id"])
        requests = [arguments for _, arguments in _by_number(sample["arguments"])]
        prompts = [_text(request["arg_0"]) for request in requests]
        target, task_id = str(sample["target"]).strip(), f"{domain}-{sample['doc_id']}"
        choices = [request.get("arg_1") for request in requests]
        if len(requests) < 2 or not all(isinstance(choice, str) for choice in choices):
            return _task(task_id, prompts[0], target.split("####")[-1].strip(), None, domain)
        if len(set(prompts)) > 1:
            raise EvalLogError("its options share no prompt, so that it is not one question")
        options = [str(choice).strip() for choice in choices]
        return _task(task_id, prompts[0], options[_gold(target, options, sample)], options, domain)

    return _collect(
        Path(path), jsonl_samples(Path(path)), read, on_error, "a sample with doc_id, target"
    )


def verdicts_from_lm_eval(
    path: str | os.PathLike[str],
    skill: str = "lm-eval",
    metric: str | None = None,
    on_error: OnError = "raise",
) -> list[Verdict]:
    """Verdicts from a sample log of lm-evaluation-harness.

    Args:
      skill: name for what this run tried; ``skill/filter`` where a filter other than ``none``
        was applied.
      metric: which metric decides; by default ``acc``, ``exact_match``, or the sample's first.
      on_error: see `tasks_from_lm_eval`.

    Raises:
      EvalLogError: see `tasks_from_lm_eval`.
    """
    domain = _lm_eval_name(path)

    def read(sample: Mapping[str, Any]) -> Verdict:
        named = list(sample.get("metrics") or [])
        preferred = [metric] if metric else ["acc", "exact_match", *named]
        chosen = next((name for name in preferred if name in sample), None)
        if chosen is None or not isinstance(sample[chosen], bool | int | float):
            raise EvalLogError(f"no number under the metric {metric or preferred}; it has {named}")
        used = sample.get("filter", "none")
        name = skill if used == "none" else f"{skill}/{used}"
        correct = float(sample[chosen]) == 1.0
        return Verdict(f"{domain}-{sample['doc_id']}", name, correct, domain, None)

    return _collect(
        Path(path), jsonl_samples(Path(path)), read, on_error, "a sample with doc_id, metrics"
    )


def tasks_from_inspect(path: str | os.PathLike[str], on_error: OnError = "raise") -> list[Task]:
    """Tasks from an Inspect log.

    Samples with ``choices`` and one letter as their target use them; others get distractors, and
    the first of several targets counts. Epochs of one sample are one task, with the id
    ``<task name>-<sample id>``; the domain is the sample's metadata field ``domain``, else the
    task name.

    Args, Raises: see `tasks_from_lm_eval`.
    """
    header, samples = inspect_samples(Path(path))
    name = header["eval"]["task"]
    seen: set[str] = set()

    def read(sample: Mapping[str, Any]) -> Task | None:
        task_id = f"{name}-{sample['id']}"
        if task_id in seen:
            return None
        seen.add(task_id)
        question = _attached(_message_text(sample["input"]), sample)
        target, options = sample["target"], sample.get("choices")
        targets = [str(t) for t in target] if isinstance(target, list) else [str(target)]
        if not options:
            return _task(
                task_id, question, _attached(targets[0], sample), None, _domain(sample, name)
            )
        options = [_attached(str(option), sample).strip() for option in options]
        letters = [t.strip().upper() for t in targets]
        if len(letters) != 1 or not re.fullmatch("[A-Z]", letters[0]):
            raise EvalLogError(f"its target {target!r} is not the letter of one option")
        position = ord(letters[0]) - ord("A")
        if position >= len(options):
            raise EvalLogError(f"its target {letters[0]} is beyond its {len(options)} options")
        return _task(task_id, question, options[position], options, _domain(sample, name))

    return _collect(Path(path), samples, read, on_error, "a sample with id, input, target")


def verdicts_from_inspect(
    path: str | os.PathLike[str],
    skill: str | None = None,
    scorer: str | None = None,
    on_error: OnError = "raise",
) -> list[Verdict]:
    """Verdicts from an Inspect log, one per sample and epoch.

    Args:
      skill: name for what this run tried; default: the log's solvers joined by ``+``, such as
        ``chain_of_thought+generate``.
      scorer: which score decides, by name; default: the sample's first. Right is ``"C"`` or 1.
      on_error: see `tasks_from_lm_eval`.

    Raises:
      EvalLogError: see `tasks_from_lm_eval`; samples that ended in an error count as bad.
    """
    header, samples = inspect_samples(Path(path))
    name = header["eval"]["task"]
    steps = [step["solver"] for step in (header.get("plan") or {}).get("steps") or []]
    named = skill or "+".join(steps) or "inspect"

    def read(sample: Mapping[str, Any]) -> Verdict:
        if sample.get("error"):
            raise EvalLogError("it ended in an error and has no verdict")
        scores = sample.get("scores") or {}
        chosen = scorer or next(iter(scores), None)
        if chosen not in scores:
            raise EvalLogError(f"it has no score {chosen!r}, only {sorted(scores)}")
        value = scores[chosen]["value"]
        if isinstance(value, dict | list):
            raise EvalLogError(f"the score {chosen!r} is not one value but {value!r}")
        usage = (sample.get("model_usage") or {}).values()
        tokens = sum(int(u["total_tokens"]) for u in usage) if usage else None
        correct = value == "C" or (isinstance(value, bool | int | float) and value == 1)
        task_id = f"{name}-{sample['id']}"
        return Verdict(task_id, named, correct, _domain(sample, name), tokens)

    return _collect(Path(path), samples, read, on_error, "a sample with id, scores")


def _collect[T](
    path: Path,
    samples: Iterable[tuple[str, Any]],
    read: Callable[[Mapping[str, Any]], T | None],
    on_error: OnError,
    wanted: str,
) -> list[T]:
    """What ``read`` makes of each sample, with one error type for whatever is wrong with it."""
    found: list[T] = []
    bad: list[str] = []
    for where, sample in samples:
        try:
            if isinstance(sample, EvalLogError):
                raise sample
            item = read(sample)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            message = f"{path}:{where}: this sample cannot be used: {what}. Wanted: {wanted}."
            if on_error == "raise":
                raise EvalLogError(f'{message} Use on_error="skip" to leave it out.') from error
            bad.append(message)
            continue
        if item is not None:
            found.append(item)
    if not found:
        first = f" The first: {bad[0]}" if bad else ""
        raise EvalLogError(f"{path}: no usable sample in it ({len(bad)} skipped).{first}")
    if bad:
        warnings.warn(f"{len(bad)} samples skipped:\n" + "\n".join(bad), stacklevel=3)
    return found


def _task(task_id: str, question: str, answer: str, options: list[str] | None, domain: str) -> Task:
    if options is None:
        candidates = candidate_set(answer, distract(answer, task_id), task_id)
    else:
        candidates = tuple(options)
    return Task(
        id=task_id,
        question=question.strip(),
        answer=answer.strip(),
        candidates=candidates,
        domain=domain,
        features=question_features(question),
        verifier="exact" if options is None else "choice",
    )


def _gold(target: str, options: list[str], sample: Mapping[str, Any]) -> int:
    """Position of the gold option. A logged target is a position or an option's text.

    Where the options are themselves small numbers both readings are possible; the logged
    likelihoods and accuracy then decide.
    """
    by_text = [i for i, option in enumerate(options) if same_answer(option, target)]
    readings = set(by_text[:1])
    if target.isdecimal() and int(target) < len(options):
        readings.add(int(target))
    if len(readings) == 2 and isinstance(sample.get("acc"), int | float):
        scores = [float(_first_number(response)) for response in sample["filtered_resps"]]
        best = max(range(len(scores)), key=scores.__getitem__)
        right = float(sample["acc"]) == 1.0
        readings = {r for r in readings if (r == best) == right}
    if len(readings) != 1:
        raise EvalLogError(f"its target {target!r} does not name one of the options {options}")
    return readings.pop()


def _first_number(response: Any) -> float:
    while isinstance(response, list):
        response = response[0]
    value = float(response)
    if math.isnan(value):
        raise ValueError("a log-likelihood is NaN")
    return value


def _lm_eval_name(path: str | os.PathLike[str]) -> str:
    """``gsm8k`` from ``samples_gsm8k_2025-01-31T10-20-30.123456.jsonl``."""
    stem = Path(path).stem.removeprefix("samples_")
    return re.sub(r"_\d{4}-\d\d-\d\dT[\d.\-]+$", "", stem) or "lm-eval"


def _by_number(arguments: Any) -> list[tuple[str, Any]]:
    """Requests in order: ``gen_args_10`` comes after ``gen_args_9``."""
    return sorted(arguments.items(), key=lambda item: int(item[0].rsplit("_", 1)[-1]))


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise EvalLogError(f"its prompt is not text but {type(value).__name__}")
    return value


def _message_text(value: Any) -> str:
    """The text of an Inspect input: a string, or chat messages whose content may have parts."""
    if isinstance(value, str):
        return value
    texts = []
    for message in value:
        content = message["content"]
        parts = [{"text": content}] if isinstance(content, str) else content
        texts += [part["text"] for part in parts if "text" in part]
    return "\n\n".join(texts)


def _attached(text: str, sample: Mapping[str, Any]) -> str:
    """Long texts are kept beside the sample and referred to as ``attachment://<hash>``."""
    kept = sample.get("attachments") or {}
    return re.sub(r"attachment://([0-9a-f]+)", lambda m: kept.get(m[1], m[0]), text)


def _domain(sample: Mapping[str, Any], name: str) -> str:
    return str((sample.get("metadata") or {}).get("domain") or name)
