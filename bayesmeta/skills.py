"""Skills: named ways to reason, as plain data (the atoms of F in Figure 2)."""

import dataclasses
import hashlib
import json
import string
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

#: Tools that a skill may name. `bayesmeta.tracing` holds what each one does.
TOOL_NAMES = ("calculator",)

#: What a template may mention. The question comes first so that all skills of a task share it
#: as one prefix, which is computed once.
TEMPLATE_FIELDS = ("question", "examples", "instruction")
DEFAULT_TEMPLATE = "{question}\n\n{examples}\n\n{instruction}"


class SkillError(ValueError):
    """A skill that cannot be run as it is written."""


@dataclasses.dataclass(frozen=True, slots=True)
class Stage:
    """One sampled stretch of a trace.

    Attributes:
      opening: text put into the assistant's mouth before it goes on by itself.
      max_new_tokens: limit in tokens of one sampled stretch. With a tool, a stage may have
        several stretches, one after each result.
      stop: strings that end the stretch; the end token always does.
    """

    opening: str = ""
    max_new_tokens: int = 48
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", _texts("stage.stop", self.stop))
        _check_text("stage.opening", self.opening)
        _check_count("stage.max_new_tokens", self.max_new_tokens, at_least=1)
        if not all(self.stop):
            _refuse("stage.stop", self.stop, "non-empty strings", "Remove the empty one.")


@dataclasses.dataclass(frozen=True, slots=True)
class Skill:
    """A named way to reason. ``Skill("rhyme", "Answer in your head.")`` is a complete one.

    Attributes:
      name: unique within a skill set.
      instruction: what the user turn asks for, after the question. Taken literally.
      version: raise it to have cached evidence of this skill computed again.
      recall: how many worked examples to put before the instruction, from external memory.
      stages: sampled stretches; none means that the answer is scored at once.
      tool: ``"calculator"`` or None. Its results are inserted where the trace calls it.
      answer_opening: the text after which the candidate answers are scored.
      template: the user turn; may mention {question}, {examples} and {instruction}. Text in
        front of a field that is empty is left out with it.
    """

    name: str
    instruction: str
    version: str = "1"
    recall: int = 0
    stages: tuple[Stage, ...] = ()
    tool: str | None = None
    answer_opening: str = "Answer:"
    template: str = DEFAULT_TEMPLATE

    def __post_init__(self) -> None:
        where = f"skill {self.name!r}"
        for field in ("name", "instruction", "version", "answer_opening", "template"):
            _check_text(f"{where}: {field}", getattr(self, field))
        if not self.name.strip():
            _refuse("skill.name", self.name, "non-empty text", "Give the skill a name.")
        if not self.answer_opening.strip():
            remedy = 'Leave it out for "Answer:".'
            _refuse(f"{where}: answer_opening", self.answer_opening, "non-empty text", remedy)
        _check_count(f"{where}: recall", self.recall, at_least=0)
        object.__setattr__(self, "stages", _stages(where, self.stages))
        if self.tool is not None and self.tool not in TOOL_NAMES:
            _refuse(
                f"{where}: tool", self.tool, f"one of {list(TOOL_NAMES)} or None", "Choose one."
            )
        if self.tool is not None and not self.stages:
            remedy = "Add a Stage in which the model can write the call."
            _refuse(f"{where}: stages", self.stages, "at least one, since it has a tool", remedy)
        _check_template(where, self.template, needs_examples=self.recall > 0)

    def to_dict(self) -> dict[str, Any]:
        """Plain data from which `from_dict` makes an equal skill."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Skill":
        """Make a skill from plain data, as read from JSON or TOML.

        Raises:
          SkillError: a field is missing, unknown or of the wrong kind.
        """
        where = f"skill {data['name']!r}" if "name" in data else "skill"
        _check_fields(where, cls, data)
        fields = dict(data)
        if "stages" in fields:
            if not isinstance(fields["stages"], Sequence) or isinstance(fields["stages"], str):
                _refuse(f"{where}: stages", fields["stages"], "a list of tables", "Use a list.")
            fields["stages"] = tuple(
                _stage_from_dict(f"{where}, stage {number}", stage)
                for number, stage in enumerate(fields["stages"])
            )
        return cls(**fields)

    def content_hash(self) -> str:
        """SHA-256 of every field, as hex: part of each cache key."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()


def default_skills() -> tuple[Skill, ...]:
    """Six skills that differ in what the reasoner does, not only in how it is asked.

    Openings that are already on their way keep a small model on the format. The calculator's
    user turn ends in the question, because such a model copies best what stands nearest.
    """
    return (
        Skill("direct", "Reply with the answer only."),
        Skill("step_by_step", "Think step by step.", stages=(Stage("Step 1:", 40, ("\n\n",)),)),
        Skill(
            "decompose",
            "Split this into smaller questions and answer them.",
            stages=(
                Stage("Smaller question: What", 20, ("\n",)),
                Stage("Its answer:", 12, ("\n",)),
            ),
        ),
        Skill("recall", "Answer in the same way.", recall=3),
        Skill(
            "calculator",
            "Write each question as a calculation.\n"
            "Q: What is 17 - 40?\n[calc: 17 - 40]\n"
            "Q: What is 23 * 6?\n[calc: 23 * 6]\n"
            "Q: How many wheels do 3 cars and 2 bikes have?\n[calc: 3*4 + 2*2]",
            stages=(Stage("[calc:", 16, ("\n", ". ")),),
            tool="calculator",
            template="{instruction}\nQ: {question}",
        ),
        Skill(
            "self_check",
            "Give an answer, then check it.",
            stages=(
                Stage("First answer:", 8, ("\n",)),
                Stage("Check it: the", 20, ("\n",)),
            ),
            answer_opening="Right answer:",
        ),
    )


def check_skills(skills: Iterable[Skill]) -> tuple[Skill, ...]:
    """Return the skills as a tuple, or raise SkillError if there are none or two share a name."""
    skills = tuple(skills)
    if not skills:
        raise SkillError("skills is empty: at least one is needed. Try default_skills().")
    for skill in skills:
        if not isinstance(skill, Skill):
            raise SkillError(
                f"skills holds {skill!r}, wanted a Skill. Make one with Skill(name, instruction)."
            )
    names = [skill.name for skill in skills]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise SkillError(f"skill names repeat: {repeated}. Give each skill its own name.")
    return skills


def load_skills(path: str | Path) -> tuple[Skill, ...]:
    """Read skills from a JSON or TOML file: a list under ``skills`` (in JSON also a bare list).

    Raises:
      SkillError: the file is no JSON or TOML, or a skill in it cannot be run.
      OSError: the file cannot be read.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        data = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except ValueError as error:  # JSON, TOML and UTF-8 errors are all ValueErrors
        raise SkillError(
            f"{path}: cannot be read as {'TOML' if path.suffix == '.toml' else 'JSON'}: {error}. "
            "Write a skill file with save_skills to see the format."
        ) from error
    rows = data.get("skills") if isinstance(data, dict) else data
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise SkillError(f'{path}: wanted {{"skills": [{{"name": ..., "instruction": ...}}]}}.')
    skills = []
    for number, row in enumerate(rows):
        try:
            skills.append(Skill.from_dict(row))
        except SkillError as error:
            raise SkillError(f"{path}, entry {number}: {error}") from error
    try:
        return check_skills(skills)
    except SkillError as error:
        raise SkillError(f"{path}: {error}") from error


def save_skills(skills: Iterable[Skill], path: str | Path) -> None:
    """Write skills as a JSON file that `load_skills` reads back unchanged."""
    rows = [skill.to_dict() for skill in check_skills(skills)]
    Path(path).write_text(json.dumps({"skills": rows}, indent=2) + "\n", encoding="utf-8")


def fill_template(template: str, values: Mapping[str, str]) -> str:
    """Fill the fields of a template; an empty field takes the text before it along."""
    text = ""
    for literal, field, _, _ in string.Formatter().parse(template):
        if field is None:
            text += literal
        elif values[field]:
            text += literal + values[field]
    return text.strip()


def _stages(where: str, stages: Any) -> tuple[Stage, ...]:
    if isinstance(stages, Stage):
        return (stages,)
    stages = tuple(stages)
    for stage in stages:
        if not isinstance(stage, Stage):
            _refuse(f"{where}: stages", stage, "Stage objects", "Write Stage(opening, ...).")
    return stages


def _stage_from_dict(where: str, data: Any) -> Stage:
    if not isinstance(data, Mapping):
        _refuse(where, data, "a table", 'Write {"opening": ..., "max_new_tokens": ...}.')
    _check_fields(where, Stage, data)
    try:
        return Stage(**data)
    except SkillError as error:
        raise SkillError(f"{where}: {error}") from error


def _check_fields(where: str, kind: type, data: Mapping[str, Any]) -> None:
    fields = dataclasses.fields(kind)
    known = [field.name for field in fields]
    required = [field.name for field in fields if field.default is dataclasses.MISSING]
    missing = [name for name in required if name not in data]
    unknown = sorted(set(data) - set(known))
    if missing:
        raise SkillError(f"{where}: fields {missing} are missing. Add them; known are {known}.")
    if unknown:
        raise SkillError(f"{where}: fields {unknown} are unknown. Remove them; known are {known}.")


def _check_template(where: str, template: str, *, needs_examples: bool) -> None:
    allowed = [f"{{{name}}}" for name in TEMPLATE_FIELDS]
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise SkillError(
            f"{where}: template {template!r} is malformed: {error}. "
            f"Its fields are {allowed}; write {{{{ and }}}} for literal braces."
        ) from error
    found = [field for _, field, _, _ in parts if field is not None]
    unknown = [field for field in found if field not in TEMPLATE_FIELDS]
    if unknown or any(spec or conversion for _, _, spec, conversion in parts):
        raise SkillError(
            f"{where}: template {template!r} mentions {unknown or 'a format'}, which is unknown. "
            f"Its fields are {allowed}, each without a format; write {{{{ and }}}} for braces."
        )
    wanted = ["question", "instruction"] + ["examples"] * needs_examples
    missing = [field for field in wanted if field not in found]
    if missing:
        raise SkillError(
            f"{where}: template {template!r} misses the fields {missing}. "
            f"Add {' and '.join(f'{{{name}}}' for name in missing)} to it."
        )


def _texts(where: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        _refuse(where, value, "a tuple of strings", f"Write ({value!r},).")
    value = tuple(value)
    for text in value:
        _check_text(where, text)
    return value


def _check_text(where: str, value: Any) -> None:
    if not isinstance(value, str):
        _refuse(where, value, "text", "Put it in quotes.")


def _check_count(where: str, value: Any, *, at_least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        _refuse(where, value, f"a whole number >= {at_least}", "Correct it.")


def _refuse(where: str, value: Any, wanted: str, remedy: str) -> NoReturn:
    raise SkillError(f"{where} is {value!r}, wanted {wanted}. {remedy}")
