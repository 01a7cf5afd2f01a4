"""Prompts and traces: what the model is shown, and how the tool gets into a trace."""

import pytest
from reference.character_llm import CharacterLLM

from bayesmeta.llm.base import Sampling
from bayesmeta.prompting import join, score_requests, user_text
from bayesmeta.skills import Skill, Stage, default_skills
from bayesmeta.tasks import Task
from bayesmeta.tracing import MAX_CALLS, Job, answer_call, derive_seed, run_stages

TASK = Task("a", "What is {3} + 4?", "7", ("7", "8", "34"))
SOLVED = [
    Task("b", "What is 1 + 1?", "2", ("2", "3")),
    Task("c", "What is 2 + 2?", "4", ("4", "3")),
]


def _user(skill):
    return user_text(TASK, skill, SOLVED if skill.recall else ())


def test_the_question_comes_first_and_is_shared():
    users = [_user(skill) for skill in default_skills() if skill.name != "calculator"]
    assert all(user.startswith(TASK.question) for user in users)


@pytest.mark.parametrize("skill", default_skills(), ids=lambda skill: skill.name)
def test_every_skill_shows_the_question_and_never_the_candidates(skill):
    user = user_text(TASK, skill, SOLVED if skill.recall else ())
    assert user.count(TASK.question) == 1 and skill.instruction in user
    assert "34" not in user and "8" not in user.replace(skill.instruction, "")


def test_examples_show_question_and_answer_in_order():
    user = user_text(TASK, Skill("r", "Go.", recall=2), SOLVED)
    places = [user.index(text) for text in (TASK.question, "1 + 1", "2\n", "2 + 2", "4", "Go.")]
    assert places[0] == 0 and user.index("1 + 1") < user.index("2 + 2") < user.index("Go.")
    assert "Answer: 2\n" in user and "Answer: 4\n" in user


def test_scores_are_asked_for_answers_that_end():
    llm = CharacterLLM()
    requests = score_requests(llm, "U", Skill("d", "x"), "", TASK.candidates)
    assert [r.continuation for r in requests] == [
        f" {c}{llm.end_of_answer}" for c in "7 8 34".split()
    ]
    assert {r.context for r in requests} == {llm.render("U", "Answer:")}
    requests = score_requests(llm, "U", Skill("d", "x"), "thinking \n", ("7",))
    assert requests[0].context == llm.render("U", "thinking\nAnswer:")


def test_join():
    assert join("", "A:") == "A:"
    assert join("one. ", "A:") == "one.\nA:"
    assert join("one", "") == "one"


def _run(skill, script=None, seeds=(0,)):
    llm = CharacterLLM(script)
    jobs = [Job("U", ("job", seed)) for seed in seeds]
    return llm, run_stages(llm, skill, jobs, sampling=Sampling())


CALCULATOR = Skill("c", "i", stages=(Stage("Work: [calc:", 30, ("\n",)),), tool="calculator")


def test_the_result_of_the_tool_is_inserted_and_the_model_goes_on():
    script = {"[calc:": " 12*3] no", "[calc: 12*3 = 36]": " which is it."}
    _, (run,) = _run(CALCULATOR, script)
    assert run.text == "Work: [calc: 12*3 = 36] which is it."
    assert run.num_tokens == len(" 12*3]") + len(" which is it.") + 1


def test_errors_of_the_tool_are_text_in_the_trace():
    script = {"[calc:": " __import__('os')]", "]": " hm\n"}
    _, (run,) = _run(CALCULATOR, script)
    assert run.text.startswith("Work: [calc: __import__('os') = error") and "] hm" in run.text


def test_a_model_that_only_calls_is_stopped():
    llm, (run,) = _run(CALCULATOR, {"[calc:": " 1+1]", "]": " [calc: 2+2]"})
    assert run.text.count("= 4]") == MAX_CALLS - 1 and run.text.count("= 2]") == 1
    assert llm.calls == ["sample"] * (MAX_CALLS + 1)


def test_brackets_that_are_no_calls_are_closed():
    _, (run,) = _run(
        CALCULATOR, {"[calc:": " 2*2] [1, 2] end\n", "= 4]": " [1, 2] x", "2]": " end\n"}
    )
    assert run.text == "Work: [calc: 2*2 = 4] [1, 2] end"


def test_a_call_that_a_line_end_cut_is_answered():
    _, (run,) = _run(CALCULATOR, {"[calc:": " 2*2\n", "]": "\n"})
    assert run.text == "Work: [calc: 2*2 = 4]"


def test_a_call_that_the_limit_cut_is_left():
    _, (run,) = _run(CALCULATOR, {"[calc:": " 1" * 40})
    assert run.text == "Work: [calc:" + " 1" * 15


def test_without_a_tool_brackets_mean_nothing():
    skill = Skill("n", "i", stages=(Stage("[calc:", 30, ("\n",)),))
    _, (run,) = _run(skill, {"[calc:": " 2*2] x\n"})
    assert run.text == "[calc: 2*2] x"


@pytest.mark.parametrize(
    ("text", "answered"),
    [
        ("plain", ("plain", False)),
        ("[calc: 1]", ("[calc: 1]", False)),
        ("[calc: 1", ("[calc: 1 = ONE]", True)),
        ("[calc: 1 = ONE] [calc: 1", ("[calc: 1 = ONE] [calc: 1 = ONE]", True)),
        ("[a, b", ("[a, b]", True)),
        ("[a\nb", ("[a\nb", False)),
    ],
)
def test_answer_call(text, answered):
    assert answer_call(text, lambda written: {"1": " ONE\n"}[written]) == answered


def test_long_results_do_not_flood_the_trace():
    text, _ = answer_call("[calc: x", lambda _: "9" * 10_000)
    assert len(text) < 120


def test_stages_build_on_each_other():
    skill = Skill("s", "i", stages=(Stage("Draft:", 9, ("\n",)), Stage("Check:", 9, ("\n",))))
    llm, (run,) = _run(skill, {"Draft:": " 7 \n", "Check:": " ok\n"})
    assert run.text == "Draft: 7\nCheck: ok"
    assert [prompt for prompt, _ in llm.sampled] == [
        llm.render("U", "Draft:"), llm.render("U", "Draft: 7\nCheck:"),
    ]  # fmt: skip


def test_jobs_do_not_touch_each_other():
    skill = Skill("s", "i", stages=(Stage("a", 12), Stage("b", 12)))
    llm, together = _run(skill, seeds=range(6))
    alone = [_run(skill, seeds=(seed,))[1][0] for seed in range(6)]
    assert together == alone
    assert len({run.text for run in together}) == 6
    assert llm.calls == ["sample", "sample"]
    assert len({seed for _, seed in llm.sampled}) == 12


def test_seeds():
    seeds = {derive_seed(a, b) for a in range(30) for b in ("x", "1", 1, "")}
    assert len(seeds) == 120 and all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(0, "x") == derive_seed(0, "x") == 8730718209362845187
