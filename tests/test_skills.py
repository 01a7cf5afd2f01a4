"""Skills are data: they survive files, differ by hash, and say what is wrong with them."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bayesmeta.skills import (
    TOOL_NAMES,
    Skill,
    SkillError,
    Stage,
    check_skills,
    default_skills,
    fill_template,
    load_skills,
    save_skills,
)

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
_STAGES = st.builds(
    Stage, _TEXT, st.integers(1, 99), st.lists(_TEXT.filter(bool), max_size=3).map(tuple)
)
_SKILLS = st.builds(
    Skill,
    name=_TEXT.filter(str.strip),
    instruction=_TEXT,
    version=_TEXT,
    recall=st.integers(0, 5),
    stages=st.lists(_STAGES, min_size=1, max_size=3).map(tuple),
    tool=st.sampled_from([None, *TOOL_NAMES]),
    answer_opening=_TEXT.filter(str.strip),
)


def test_a_skill_takes_one_line():
    skill = Skill("rhyme", "Answer in your head.")
    assert (skill.stages, skill.recall, skill.tool) == ((), 0, None)


def test_the_default_skills_differ_in_what_is_done():
    skills = {skill.name: skill for skill in default_skills()}
    assert list(skills) == [
        "direct", "step_by_step", "decompose", "recall", "calculator", "self_check",
    ]  # fmt: skip
    doing = {
        (skill.recall, skill.tool, len(skill.stages), skill.answer_opening)
        for skill in skills.values()
    }
    assert len(doing) >= 5
    assert not skills["direct"].stages and skills["recall"].recall >= 3
    assert skills["calculator"].tool == "calculator"
    assert len(skills["decompose"].stages) == 2 and len(skills["self_check"].stages) == 2


@given(_SKILLS)
def test_any_skill_survives_json(skill):
    again = Skill.from_dict(json.loads(json.dumps(skill.to_dict())))
    assert again == skill and again.content_hash() == skill.content_hash()


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"instruction": "Other."},
        {"version": "2"},
        {"recall": 1},
        {"stages": (Stage("x", 9),)},
        {"stages": (Stage("", 8), Stage("", 8))},
        {"tool": None},
        {"answer_opening": "So:"},
        {"template": "{instruction} {examples} {question}"},
    ],
)
def test_every_field_changes_the_hash(change):
    skill = Skill("a", "b", stages=(Stage("", 8),), tool="calculator")
    assert dataclasses.replace(skill, **change).content_hash() != skill.content_hash()


def test_files_round_trip(tmp_path):
    save_skills(default_skills(), tmp_path / "skills.json")
    assert load_skills(tmp_path / "skills.json") == default_skills()


def test_toml_and_bare_lists_are_read(tmp_path):
    toml = tmp_path / "skills.toml"
    toml.write_text(
        '[[skills]]\nname = "rhyme"\ninstruction = "Rhyme."\n'
        '[[skills.stages]]\nopening = "Roses"\nmax_new_tokens = 9\nstop = ["."]\n'
    )
    wanted = (Skill("rhyme", "Rhyme.", stages=(Stage("Roses", 9, (".",)),)),)
    assert load_skills(toml) == wanted
    bare = tmp_path / "skills.json"
    bare.write_text(json.dumps([wanted[0].to_dict()]))
    assert load_skills(bare) == wanted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read as JSON"),
        ("{", "cannot be read as JSON"),
        ("3", "wanted"),
        ('{"skill": []}', "wanted"),
        ("[]", "at least one is needed"),
        ('[{"name": "a"}]', r"entry 0: skill 'a': fields \['instruction'\] are missing"),
        ('[{"name": "a", "instruction": "", "tol": 1}]', r"\['tol'\] are unknown"),
        ('[{"name": "a", "instruction": 3}]', "instruction is 3, wanted text"),
        ('[{"name": "a", "instruction": "", "stages": "x"}]', "wanted a list of tables"),
        ('[{"name": "a", "instruction": "", "stages": [3]}]', "stage 0 is 3"),
        ('[{"name": "a", "instruction": "", "stages": [{"max": 3}]}]', r"\['max'\] are unknown"),
        (
            '[{"name": "a", "instruction": "", "stages": [{"max_new_tokens": 0}]}]',
            "stage 0: stage.max_new_tokens is 0, wanted a whole number >= 1",
        ),
        ('[{"name": "a", "instruction": ""}, {"name": "a", "instruction": ""}]', "repeat"),
    ],
)
def test_a_bad_file_names_itself_and_the_entry(tmp_path, text, message):
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(SkillError, match=message) as caught:
        load_skills(path)
    assert "mine.json" in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"template": "{question}"}, r"misses the fields \['instruction'\]"),
        ({"template": "hi"}, r"misses the fields \['question', 'instruction'\]"),
        ({"template": "{question} {instruction}", "recall": 2}, r"misses the fields \['examples'"),
        ({"template": "{question} {instruction} {answer}"}, r"mentions \['answer'\]"),
        ({"template": "{question} {instruction} {}"}, r"mentions \[''\]"),
        ({"template": "{question.id} {instruction}"}, "mentions"),
        ({"template": "{question:>9} {instruction}"}, "without a format"),
        ({"template": "{question} {instruction"}, "malformed"),
        ({"name": " "}, "non-empty"),
        ({"answer_opening": ""}, "answer_opening"),
        ({"recall": -1}, "recall is -1"),
        ({"recall": True}, "recall is True"),
        ({"tool": "browser"}, r"tool is 'browser', wanted one of \['calculator'\]"),
        ({"tool": "calculator"}, "at least one, since it has a tool"),
        ({"stages": ("x",)}, "Stage objects"),
    ],
)
def test_a_skill_that_cannot_run_is_refused(fields, message):
    with pytest.raises(SkillError, match=message):
        Skill(**{"name": "a", "instruction": "b", **fields})


def test_a_stop_string_must_be_a_tuple():
    with pytest.raises(SkillError, match="tuple of strings"):
        Stage("", 9, stop="end")  # pyright: ignore[reportArgumentType]
    with pytest.raises(SkillError, match="non-empty"):
        Stage("", 9, stop=("",))


def test_a_skill_set_is_skills_only():
    with pytest.raises(SkillError, match="wanted a Skill"):
        check_skills(["direct"])  # pyright: ignore[reportArgumentType]


def test_an_empty_field_takes_the_text_before_it_along():
    template = "{question}\n\nSolved:\n{examples}\n\n{instruction}"
    values = {"question": "Q {x}", "examples": "", "instruction": "I"}
    assert fill_template(template, values) == "Q {x}\n\nI"
    assert fill_template(template, values | {"examples": "E"}) == "Q {x}\n\nSolved:\nE\n\nI"
