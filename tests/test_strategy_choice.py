"""Strategy choice from verdicts: against baselines and by hand, and what it learns."""

import json
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import FALSE_ALARM
from scipy import stats
from scipy.special import expit

from bayesmeta.models.solvability import POOLED_DOMAINS
from bayesmeta.strategy_choice import SuccessModel, choose, choose_strategies, judge
from bayesmeta.verdict_baselines import BASELINES, domain_counts, fit_logistic, pooled_counts
from bayesmeta.verdict_counts import VerdictCounts, expected_tokens
from bayesmeta.verdicts import from_verdicts


def simulate(rng, per_domain=40, num_domains=6, swing=1.5, difficulty=1.0):
    """Verdicts of two skills of which each suits half of the domains, and the true rates."""
    gamma = np.where(np.arange(num_domains)[:, None] % 2, 1, -1) * np.array([swing, -swing]) / 2
    level = np.linspace(-0.5, 0.5, num_domains)[:, None]
    rows = []
    for d in range(num_domains):
        for n in range(per_domain):
            p = expit(level[d] + gamma[d] - difficulty * rng.normal())
            for k, name in enumerate(("direct", "cot")):
                tokens = (5, 100)[k]
                rows.append((f"{d}/{n}", f"domain-{d}", name, int(rng.random() < p[k]), tokens))
    table = pd.DataFrame(rows, columns=["task", "domain", "skill", "correct", "tokens"])
    z, weight = np.polynomial.hermite_e.hermegauss(40)
    shifted = (level + gamma)[..., None] - difficulty * z
    return table, (expit(shifted) * weight / weight.sum()).sum(-1)


@pytest.fixture(scope="module")
def fitted():
    """One vectorised run: the same six domains with all tasks, and thirty times with few."""
    rng = np.random.default_rng(3)
    table, truth = simulate(rng, per_domain=60)
    counts = VerdictCounts.of(from_verdicts(table))
    model = SuccessModel(counts)
    index = np.arange(counts.num_tasks).reshape(6, 60)
    subsets = [
        np.concatenate([rng.permutation(row)[:size] for row in index]) for size in [60] + [5] * 30
    ]
    return counts, model, subsets, model.fit(subsets, num_warmup=200, num_samples=200), truth


@pytest.mark.slow
def test_with_few_tasks_partial_pooling_predicts_better_than_counts(fitted):
    counts, model, subsets, fits, truth = fitted
    new = counts.take(np.arange(0, counts.num_tasks, 60))  # one task of each domain

    def loss(p):
        return -(truth * np.log(p) + (1 - truth) * np.log(1 - p)).mean()

    ours = np.array([loss(model.draws(f, new.domain, new.x).mean(0)) for f in fits[1:]])
    for baseline in (domain_counts, pooled_counts):
        theirs = [loss(baseline(counts.take(tasks), new)) for tasks in subsets[1:]]
        gain = np.array(theirs) - ours
        assert gain.mean() > 2 * gain.std(ddof=1) / np.sqrt(len(gain)) > 0


@pytest.mark.slow
def test_without_domain_effects_every_domain_gets_the_same_and_a_pooled_rate(fitted):
    counts, full, subsets, fits, truth = fitted
    model = SuccessModel(counts, POOLED_DOMAINS)
    (fit,) = model.fit(subsets[:1], num_warmup=150, num_samples=150)
    domains = np.array(model.domains)
    p = model.draws(fit, domains, np.zeros((6, 0))).mean(0)
    np.testing.assert_allclose(p, p[:1].repeat(6, 0), atol=1e-12)
    pooled = pooled_counts(counts.take(subsets[0]), counts.take(np.arange(6)))[0]
    # Some 360 tasks: the prior moves the mean by much less than a standard error.
    assert np.abs(p[0] - pooled).max() < 0.5 * np.sqrt(0.25 / 360)
    # That model is wrong here, and fares worse.
    right = full.draws(fits[0], domains, np.zeros((6, 0))).mean(0)
    gain = truth * np.log(right / p) + (1 - truth) * np.log((1 - right) / (1 - p))
    assert gain.mean() > 0.01


def test_rates_are_recovered_and_choices_follow_utility():
    table, truth = simulate(np.random.default_rng(6), per_domain=60)
    table["split"] = np.where(table["task"].str.endswith("9"), "held_out", "reflect")
    table.loc[table["domain"] == "domain-5", "split"] = "held_out"
    choice = choose_strategies(
        table, cost_per_token=1e-4, num_chains=1, num_warmup=200, num_samples=200
    )
    columns = ("probability", "lower", "upper", "tokens", "chosen", "skill")
    p, lower, upper, tokens, chosen, skill = (
        choice.table[name].to_numpy().reshape(6, 2) for name in columns
    )
    assert (lower < p).all() and (p < upper).all() and (chosen.sum(1) == 1).all()
    seen = slice(0, 5)  # of domain-5 nothing was
    error = (upper - lower)[seen] / (2 * stats.norm.isf(0.05))
    limit = stats.norm.isf(FALSE_ALARM / 20)
    assert (np.abs(p - truth)[seen] < limit * error).all()
    assert not (np.abs(p - truth[:, ::-1])[seen] < limit * error).all()
    assert (truth.argmax(1) == chosen.argmax(1))[seen].all()
    assert choice.skill_for("domain-1") == skill[1, truth[1].argmax()]
    with pytest.raises(KeyError, match="no domain 'nowhere'"):
        choice.skill_for("nowhere")
    assert (upper - lower)[5].min() > 1.3 * (upper - lower)[seen].max()
    assert choice.heldout is not None and len(choice.heldout) == 5 * 6 + 60
    # The tree for ArviZ counts every reflect task once, whatever rows the sampler merged.
    import arviz as az

    assert choice.tree["posterior"]["eta"].dims == ("chain", "draw", "domain", "skill")
    each = choice.tree["log_likelihood"]["y"]
    assert each.sizes["task"] == 5 * 54 and np.isfinite(float(az.loo(choice.tree).elpd))
    by_guessing = 2 * 5 * 54 * np.log(0.5)  # two verdicts a task
    assert by_guessing < float(each.sum("task").mean()) < 0
    assert np.all(choice.heldout["regret"].to_numpy() >= 0)
    # 95 tokens more can only pay if they are cheap.
    dear = choose(p, tokens, p > 0, 0.02)
    assert (np.take_along_axis(skill, dear[:, None], 1) == "direct").all()


def small_counts():
    table = pd.DataFrame(
        [
            ("a", "p", "one", 1, 10),
            ("a", "p", "one", 0, 30),
            ("a", "p", "two", 1, 50),
            ("b", "p", "one", 0, 20),
            ("c", "q", "two", 1, 70),
        ],
        columns=["task", "domain", "skill", "correct", "tokens"],
    )
    return VerdictCounts.of(from_verdicts(table))


def test_counts_tokens_and_scores_by_hand():
    counts = small_counts()
    np.testing.assert_array_equal(counts.tried, [[2, 1], [1, 0], [0, 1]])
    np.testing.assert_array_equal(counts.tokens, [[20, 50], [20, 0], [0, 70]])
    np.testing.assert_allclose(
        expected_tokens(counts, np.array(["p", "q", "r"])), [[20, 50], [20, 70], [20, 60]]
    )
    np.testing.assert_allclose(pooled_counts(counts, counts)[0], [1.5 / 4, 3 / 4])
    np.testing.assert_allclose(domain_counts(counts, counts)[2], [1 / 2, 2 / 3])
    p = np.array([[0.8, 0.4], [0.8, 0.4], [0.8, 0.4]])
    choice = choose(p, counts.tokens, counts.tried > 0, 0.01)
    np.testing.assert_array_equal(choice, [0, 0, 1])
    found = judge(p, choice, counts, 0.01)
    half = 0.5 * (np.log(0.8) + np.log(0.2))
    np.testing.assert_allclose(
        found["log_score"], [(half + np.log(0.4)) / 2, np.log(0.2), np.log(0.4)]
    )
    np.testing.assert_allclose(found["chosen_log_score"], [half, np.log(0.2), np.log(0.4)])
    np.testing.assert_allclose(found["regret"], [(1 - 0.5) - (0.5 - 0.2), 0, 0], atol=1e-12)


def test_log_score_is_best_at_the_true_probability():
    counts = small_counts().take([0])
    grid = np.linspace(0.05, 0.95, 19)
    scores = [
        judge(np.array([[g, 0.5]]), np.array([0]), counts, 0)["chosen_log_score"][0] for g in grid
    ]
    assert grid[int(np.argmax(scores))] == pytest.approx(0.5)


def test_logistic_fit_has_no_slope_left_and_beats_its_neighbours():
    rng = np.random.default_rng(7)
    design = np.hstack([np.ones((50, 1)), rng.normal(size=(50, 2))])
    response = rng.random(50)
    w = fit_logistic(design, response)
    p = expit(design @ w)
    gradient = design.T @ (response - p) - np.array([1e-6, 1, 1]) * w
    assert np.abs(gradient).max() < 1e-7
    separated = fit_logistic(design, (design[:, 1] > 0).astype(float))
    assert np.isfinite(separated).all() and separated[1] > 1


def test_every_baseline_gives_probabilities_also_for_a_domain_it_has_not_seen():
    table, _ = simulate(np.random.default_rng(8), per_domain=4)
    counts = VerdictCounts.of(from_verdicts(table))
    reflect = counts.take(counts.domain != "domain-3")
    for baseline in BASELINES.values():
        p = baseline(reflect, counts)
        assert p.shape == counts.tried.shape and ((p > 0) & (p < 1)).all()


def test_bad_arguments_are_refused():
    table, _ = simulate(np.random.default_rng(0), per_domain=2)
    with pytest.raises(ValueError, match="cost_per_token is -1"):
        choose_strategies(table, cost_per_token=-1)
    with pytest.raises(ValueError, match="interval is 1.5"):
        choose_strategies(table, interval=1.5)
    with pytest.raises(ValueError, match="the only skill is"):
        choose_strategies(table[table["skill"] == "cot"])
    with pytest.raises(ValueError, match="no reflect tasks"):
        choose_strategies(table.assign(split="held_out"))
    with pytest.raises(ValueError, match="needs verdicts"):
        choose_strategies(from_verdicts(table).drop_vars(["verdict", "verdict_observed"]))


def test_the_script_prints_a_table_for_any_folder(tmp_path, monkeypatch, capsys):
    import importlib.util
    from pathlib import Path

    path = Path(__file__).parent / "benchmarks" / "strategy_choice.py"
    spec = importlib.util.spec_from_file_location("strategy_choice_script", path)
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, script)
    spec.loader.exec_module(script)
    # Six domains, one chain and 200 draws, as in the test of recovery: compiled once for both.
    table, _ = simulate(np.random.default_rng(1), per_domain=20)
    folder = tmp_path / "bbh_strategies"
    folder.mkdir()
    table["item"] = table["task"].str.split("/").str[1].astype(int)
    table = table.drop(columns="task").rename(columns={"domain": "task", "skill": "strategy"})
    table.assign(target="x", answer="yes").to_csv(folder / "outcomes.csv", index=False)
    options = ["--sizes", "10", "15", "--seeds", "1", "--folds", "2", "--warmup", "200"]
    monkeypatch.setattr(sys, "argv", ["strategy_choice.py", str(tmp_path), *options])
    more = ["--samples", "200", "--full-warmup", "200", "--full-samples", "200"]
    monkeypatch.setattr(sys, "argv", [*sys.argv, *more])
    assert script.main() == 0
    printed = capsys.readouterr().out
    result = json.loads(printed.splitlines()[-1])
    assert set(result) == {"bbh_strategies"}
    assert {"log_score", "best_baseline", "diff", "diff_se"} <= set(result["bbh_strategies"])
    assert "game24: skipped, FileNotFoundError" in printed
    assert "15 reflect tasks per domain: skipped" in printed
    tables = printed.rsplit("\n", 2)[0]
    assert tables.count("always CoT") == 2 and tables.count("domain counts") == 2
