import numpy as np
import pytest
from simulated_scores import simulate

from bayesmeta import heldout as heldout_module
from bayesmeta import metrics
from bayesmeta.baselines import BASELINES, complete_pooling, no_pooling, oracle, uniform
from bayesmeta.heldout import (
    POSTERIOR,
    TOP_SKILL,
    compare,
    explain,
    format_table,
    format_table_html,
    heldout_table,
    skills_matter,
    verdict,
)

REFLECT, HELD_OUT = simulate(160, seed=1, spread=2.0), simulate(120, seed=2, spread=2.0)
STRATEGY = 0.8 * no_pooling(REFLECT, HELD_OUT) + 0.2 * complete_pooling(REFLECT, HELD_OUT)
TABLE = heldout_table(REFLECT, HELD_OUT, {POSTERIOR: STRATEGY})


def test_columns_rows_and_order():
    assert list(TABLE.columns) == [
        "log_score",
        "log_score_se",
        "diff_to_posterior",
        "diff_se",
        "accuracy",
        "brier",
        "ece",
        "ece_null",
        "ece_null_q95",
        "tokens_per_task",
        "skills_per_task",
        "kind",
        "n",
    ]
    assert set(TABLE.index) == {
        POSTERIOR,
        TOP_SKILL,
        *(f"skill: {s}" for s in HELD_OUT.skills),
        *BASELINES,
    }
    assert TABLE["log_score"].is_monotonic_decreasing
    assert TABLE.index[0] == "oracle over skills"
    assert set(TABLE["n"]) == {120}


def test_numbers_are_those_of_the_metrics():
    posterior = metrics.log_scores(HELD_OUT.mix(STRATEGY), HELD_OUT.gold)
    flat = metrics.log_scores(HELD_OUT.mix(uniform(REFLECT, HELD_OUT)), HELD_OUT.gold)
    row = TABLE.loc["uniform mixture"]
    expected = metrics.paired_difference(flat, posterior)
    assert row["diff_to_posterior"] == pytest.approx(expected.mean, abs=1e-12)
    assert row["diff_se"] == pytest.approx(expected.standard_error, abs=1e-12)
    assert row["diff_to_posterior"] == pytest.approx(
        row["log_score"] - TABLE.loc[POSTERIOR, "log_score"], abs=1e-12
    )
    assert TABLE.loc[POSTERIOR, "diff_to_posterior"] == 0
    clustered = heldout_table(REFLECT, HELD_OUT, {POSTERIOR: STRATEGY}, cluster_by_domain=True)
    error = metrics.paired_difference(flat, posterior, HELD_OUT.domain).standard_error
    assert clustered.loc["uniform mixture", "diff_se"] == pytest.approx(error, abs=1e-12)


def test_tokens_count_the_skills_that_run():
    # Costs are 10, 100, 50 and 70 tokens.
    assert TABLE.loc["skill: recall", "tokens_per_task"] == 50
    assert TABLE.loc["uniform mixture", "tokens_per_task"] == 230
    assert TABLE.loc["uniform mixture", "skills_per_task"] == 4
    rare = np.tile([0.5, 0.49, 0.005, 0.005], (120, 1))
    table = heldout_table(REFLECT, HELD_OUT, {POSTERIOR: rare})
    assert table.loc[POSTERIOR, "tokens_per_task"] == 110
    assert table.loc[TOP_SKILL, "tokens_per_task"] == 10


def test_verdict_in_words_won_lost_open():
    assert TABLE.loc["oracle over skills", "kind"].startswith("bound")
    cheat = heldout_table(REFLECT, HELD_OUT, {POSTERIOR: oracle(REFLECT, HELD_OUT)})
    assert verdict(cheat) == "won"
    assert "won against every baseline" in explain(cheat)
    assert "oracle" not in explain(cheat)
    bad = np.tile(np.eye(4)[int(HELD_OUT.log_likelihood.mean(0).argmin())], (120, 1))
    lost = heldout_table(REFLECT, HELD_OUT, {POSTERIOR: bad})
    assert verdict(lost) == "lost" and "a simpler method did better" in explain(lost)
    assert "no pooling" in compare(lost)["loses"]
    same = heldout_table(REFLECT, HELD_OUT, {POSTERIOR: no_pooling(REFLECT, HELD_OUT)})
    assert verdict(same) == "open" and "no pooling" in compare(same)["ties"]
    assert "uniform mixture" in compare(same)["beats"]


def test_skills_matter_is_oracle_minus_best_single():
    gain = skills_matter(HELD_OUT)
    log_likelihood = HELD_OUT.log_likelihood
    assert gain.mean == pytest.approx(
        log_likelihood.max(1).mean() - log_likelihood.mean(0).max(), abs=1e-12
    )
    assert gain.mean > 4 * gain.standard_error
    alike = simulate(50, seed=3)
    copied = np.repeat(alike.log_p[:, :1], 4, axis=1)
    clones = type(alike)(
        copied, alike.gold, alike.domain, alike.features, alike.tokens, alike.skills
    )
    assert skills_matter(clones) == (0.0, 0.0)


def test_terminal_table_is_aligned_and_html_is_escaped():
    lines = format_table(TABLE).splitlines()
    assert len(lines) == len(TABLE) + 2
    assert max(map(len, lines)) < 150
    assert "oracle over skills (bound)" in format_table(TABLE)
    evil = TABLE.rename(index={"router": "<script>alert(1)</script>"})
    html = format_table_html(evil)
    assert "<script>" not in html and "&lt;script&gt;" in html


def test_headings_are_distinct():
    headings = [heading for _, heading, _, _ in heldout_module.COLUMNS]
    assert len(set(headings)) == len(headings)


def test_an_impossible_answer_is_minus_infinity_and_not_hidden():
    log_p = HELD_OUT.log_p.copy()
    gold = HELD_OUT.gold[0]
    log_p[0, 0] = np.log(1 / 3)
    log_p[0, 0, gold] = -np.inf
    broken = type(HELD_OUT)(
        log_p, HELD_OUT.gold, HELD_OUT.domain, HELD_OUT.features, HELD_OUT.tokens, HELD_OUT.skills
    )
    table = heldout_table(REFLECT, broken, {POSTERIOR: STRATEGY})
    assert table.loc["skill: direct", "log_score"] == -np.inf
    assert table.index[-1] == "skill: direct" or table["log_score"].iloc[-1] == -np.inf
    assert "−inf" in format_table(table)
    assert "skill: direct" in compare(table)["beats"]


def test_bad_input():
    with pytest.raises(ValueError, match="must contain 'posterior'"):
        heldout_table(REFLECT, HELD_OUT, {"mine": STRATEGY})
    with pytest.raises(ValueError, match="no held-out tasks"):
        heldout_table(REFLECT, HELD_OUT.take([]), {POSTERIOR: STRATEGY[:0]})
