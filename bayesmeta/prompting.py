"""Prompts: how a task, a skill and what memory recalls become text for a language model."""

from collections.abc import Sequence

from bayesmeta.llm.base import AbstractLLM, ScoreRequest
from bayesmeta.skills import Skill, fill_template
from bayesmeta.tasks import Task

#: Raised whenever the same task and skill would be worded differently: part of every cache key.
PROMPT_VERSION = "1"


def user_text(task: Task, skill: Skill, examples: Sequence[Task] = ()) -> str:
    """The user turn: the question first, then worked examples, then the skill's instruction.

    The question opens the turn so that all skills of a task share it as one prefix. The gold
    answer and the candidates of ``task`` are never shown; the answers of ``examples`` are.
    """
    values = {
        "question": task.question.strip(),
        "examples": worked(examples),
        "instruction": skill.instruction.strip(),
    }
    return fill_template(skill.template, values)


def join(trace: str, opening: str) -> str:
    """The assistant's turn so far, with the next opening on a line of its own."""
    trace = trace.rstrip()
    return f"{trace}\n{opening}" if trace and opening else trace + opening


def score_requests(
    llm: AbstractLLM, user: str, skill: Skill, trace: str, candidates: Sequence[str]
) -> list[ScoreRequest]:
    """One request per candidate: log p(answer, end of answer | question, skill, trace)."""
    context = llm.render(user, join(trace, skill.answer_opening))
    return [ScoreRequest(context, f" {text}{llm.end_of_answer}") for text in candidates]


def worked(examples: Sequence[Task]) -> str:
    """Solved tasks as text, for a prompt."""
    if not examples:
        return ""
    solved = "\n\n".join(f"Q: {task.question.strip()}\nAnswer: {task.answer}" for task in examples)
    return f"Solved before:\n\n{solved}"
