"""From evidence to a DataTree that every ArviZ function takes, and back from disk."""

import arviz as az
import numpy as np
import pytest
import xarray as xr
from conftest import FALSE_ALARM
from scipy import stats
from scipy.special import logsumexp, softmax
from simulate import planted_evidence

import bayesmeta
from bayesmeta.analysis import judge
from bayesmeta.arrays import Encoding
from bayesmeta.evidence_build import from_log_probabilities
from bayesmeta.evidence_join import split
from bayesmeta.posterior import NotConvergedError, check_converged, encoding_of
from bayesmeta.prediction import mix, predict, strategy_draws
from bayesmeta.skill_scores import skill_scores


@pytest.fixture(scope="module")
def evidence():
    return planted_evidence()


@pytest.fixture(scope="module")
def tree(evidence):
    return bayesmeta.fit(evidence, num_warmup=500, num_samples=500)


def test_it_converged_and_learned_the_planted_skills(tree):
    check_converged(tree)
    strategy = tree["posterior"]["F"].mean(("chain", "draw"))
    for d, skill in enumerate("abca"):
        assert str(strategy.sel(domain=f"d{d}").idxmax("skill").values) == skill


def test_groups_and_dimensions(tree):
    assert {
        "posterior",
        "posterior_predictive",
        "log_likelihood",
        "log_prior",
        "sample_stats",
        "observed_data",
        "constant_data",
    } <= set(tree.children)
    assert tree["log_likelihood"]["O"].dims == ("chain", "draw", "task")
    assert tree["observed_data"]["O"].dims == ("task",)
    assert set(tree["log_prior"].data_vars) == {"u", "U", "tau_E", "v"}
    assert tree["posterior"]["F"].dims == ("chain", "draw", "domain", "skill")


def test_log_likelihood_is_that_of_the_mixture(tree, evidence):
    reflect, _ = split(evidence)
    draw = tree["posterior"].isel(chain=1, draw=7)
    encoding = encoding_of(tree)
    index = encoding.domain_index(reflect["domain"].values)
    logits = (
        draw["mu"].values
        + encoding.standardise(reflect) @ draw["W"].values.T
        + draw["delta"].values[index]
    )
    expected = logsumexp(
        np.log(softmax(logits, axis=1)) + skill_scores(reflect).log_likelihood, axis=1
    )
    found = tree["log_likelihood"]["O"].isel(chain=1, draw=7).values
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_log_prior_is_the_prior_density(tree):
    draw = tree["posterior"].isel(chain=0, draw=3)
    prior = tree["log_prior"].isel(chain=0, draw=3)
    assert float(prior["u"]) == pytest.approx(stats.norm(0, 1.5).logpdf(draw["u"]).sum(), abs=1e-4)
    assert float(prior["tau_E"]) == pytest.approx(
        stats.halfnorm(0, 0.5).logpdf(draw["tau_E"]), abs=1e-4
    )
    by_domain = stats.norm(0, float(draw["tau_E"])).logpdf(draw["v"]).sum()
    assert float(prior["v"]) == pytest.approx(by_domain, rel=1e-4, abs=1e-3)


def test_arviz_takes_the_whole_tree(tree, evidence):
    assert np.isfinite(az.summary(tree, var_names=["u", "tau_E"], round_to="none")["mean"]).all()
    loo = az.loo(tree)
    assert np.isfinite(loo.elpd) and loo.n_data_points == 88
    table = az.psense_summary(tree, var_names=["tau_E"])
    assert {"prior", "likelihood"} <= set(table.columns) and np.isfinite(
        table[["prior", "likelihood"]].to_numpy(float)
    ).all()
    flat = bayesmeta.HIERARCHICAL.replace(
        "tight", tau_E=bayesmeta.SitePrior("HalfNormal", {"scale": 0.01})
    )
    tight = bayesmeta.fit(evidence, flat, num_warmup=500, num_samples=500)
    ranking = az.compare({"hierarchical": tree, "pooled": tight})
    assert ranking.index[0] == "hierarchical"


def test_arviz_draws_the_tree(tree):
    import matplotlib

    matplotlib.use("agg")
    for draw in (az.plot_trace_dist, az.plot_rank, az.plot_forest):
        assert draw(tree, var_names=["u", "tau_E"], backend="matplotlib") is not None
    assert az.plot_energy(tree, backend="matplotlib") is not None
    import matplotlib.pyplot as plt

    plt.close("all")


def test_prior_draws_are_of_the_prior_and_ignore_the_answers(evidence):
    drawn = bayesmeta.prior_predictive(evidence, num_samples=1000)
    u = drawn["prior"]["u"].values
    assert abs(u.std() / 1.5 - 1) < 5 / np.sqrt(2 * u.size)
    assert drawn["prior"]["F"].dims == ("chain", "draw", "domain", "skill")
    moved = evidence.copy(deep=True)
    moved["gold"].values[:] = 3
    again = bayesmeta.prior_predictive(moved, num_samples=1000)
    xr.testing.assert_equal(again["prior_predictive"].dataset, drawn["prior_predictive"].dataset)


def test_prior_draws_of_all_sites_belong_together(evidence):
    """Strategies are those of a draw's own parameters, and answers follow that draw's mixture."""
    drawn = bayesmeta.prior_predictive(evidence, num_samples=1000)
    prior, answers = drawn["prior"].isel(chain=0), drawn["prior_predictive"]["O"].values[0]
    domain_logits = prior["mu"].values[:, None] + prior["delta"].values
    np.testing.assert_allclose(prior["F"].values, softmax(domain_logits, axis=2), atol=1e-5)
    encoding, scores = Encoding.of(evidence), skill_scores(evidence)
    effect = np.einsum("np,skp->snk", encoding.standardise(evidence), prior["W"].values)
    logits = domain_logits[:, encoding.domain_index(evidence["domain"].values)] + effect
    p = np.exp([mix(weights, scores.log_p) for weights in softmax(logits, axis=2)])

    def surplus_of_the_favourite(p):
        """How many standard errors more often than said the likeliest answer was drawn."""
        favourite, chance = p.argmax(2), p.max(2)
        return ((answers == favourite) - chance).sum() / np.sqrt((chance * (1 - chance)).sum())

    limit = stats.norm.isf(FALSE_ALARM / 2)
    assert abs(surplus_of_the_favourite(p)) < limit
    assert abs(surplus_of_the_favourite(np.roll(p, 1, 0))) > limit, "another draw's parameters"


def test_prediction_is_the_mixture_under_the_mean_strategy(tree, evidence):
    _, heldout = split(evidence)
    predicted = predict(tree, heldout)
    np.testing.assert_allclose(predicted["weight"].sum("skill"), 1, atol=1e-9)
    np.testing.assert_allclose(logsumexp(predicted["log_p"], axis=1), 0, atol=1e-6)
    scores = skill_scores(heldout)
    np.testing.assert_allclose(
        predicted["log_p"], scores.mix(predicted["weight"].values), atol=1e-6
    )
    assert (predicted["weight_lower"] <= predicted["weight"] + 1e-9).all()


def test_prediction_beats_the_uniform_mixture_on_new_tasks(tree):
    fresh = planted_evidence(num_tasks=400, seed=1)
    scores = skill_scores(fresh)
    even = mix(np.full((400, 3), 1 / 3), scores.log_p)
    gain = np.take_along_axis(
        predict(tree, fresh)["log_p"].values - even, fresh["gold"].values[:, None], 1
    )
    assert gain.mean() > 3 * gain.std() / np.sqrt(400)
    wrong = planted_evidence(num_tasks=400, seed=1)
    wrong = wrong.assign(domain=("task", np.roll(wrong["domain"].values, 1)))
    loss = np.take_along_axis(
        predict(tree, wrong)["log_p"].values - even, fresh["gold"].values[:, None], 1
    )
    assert loss.mean() < gain.mean() - 3 * (loss - gain).std() / np.sqrt(400)


def test_every_engine_can_be_named(evidence, tree):
    middle = tree["posterior"]["F"].mean(("chain", "draw"))
    for engine in ("whitened_nuts", "whitened_hmc"):
        fast = bayesmeta.fit(evidence, engine=engine, num_warmup=500, num_samples=500)
        assert fast.attrs["setting_engine"] == engine
        assert float(np.abs(fast["posterior"]["F"].mean(("chain", "draw")) - middle).max()) < 0.05
    rough = bayesmeta.fit(evidence, engine="svi", num_samples=500)
    assert rough["posterior"].sizes["chain"] == 1
    assert np.isfinite(rough["log_likelihood"]["O"].values).all()
    with pytest.raises(ValueError, match="unknown engine 'gibbs'; known: nuts, svi"):
        bayesmeta.fit(evidence, engine="gibbs")


def test_unseen_domain_is_less_certain_than_seen_ones(tree, evidence):
    _, heldout = split(evidence)
    moved = heldout.assign(domain=("task", np.array(["new"] * 32, object)))
    spread_new = strategy_draws(tree, moved).std(0).mean()
    spread_seen = strategy_draws(tree, heldout).std(0).mean()
    assert spread_new > 1.3 * spread_seen


def test_round_trip_through_disk(tree, tmp_path, evidence):
    path = tmp_path / "posterior.nc"
    bayesmeta.save_posterior(tree, path)
    back = bayesmeta.load_posterior(path)
    assert back.attrs == tree.attrs
    for group in tree.children:
        xr.testing.assert_equal(back[group].to_dataset(), tree[group].to_dataset())
    xr.testing.assert_allclose(predict(back, evidence), predict(tree, evidence))


def test_files_that_are_no_posterior_are_refused(tmp_path, evidence, tree):
    with pytest.raises(FileNotFoundError, match="bayesmeta fit"):
        bayesmeta.load_posterior(tmp_path / "none.nc")
    broken = tmp_path / "broken.nc"
    bayesmeta.save_posterior(tree, broken)
    broken.write_bytes(broken.read_bytes()[:5000])
    with pytest.raises(ValueError, match="not a readable posterior"):
        bayesmeta.load_posterior(broken)
    other = tmp_path / "evidence.nc"
    bayesmeta.save_evidence(evidence, other)
    with pytest.raises(ValueError, match="holds no posterior"):
        bayesmeta.load_posterior(other)


def test_a_fit_that_did_not_converge_predicts_nothing(evidence):
    hasty = bayesmeta.fit(evidence, num_warmup=20, num_samples=20, num_chains=2)
    with pytest.raises(NotConvergedError, match="Double"):
        predict(hasty, evidence)


def test_held_out_tasks_are_never_looked_at(evidence, tree):
    spoiled = evidence.copy(deep=True)
    out = spoiled["split"].values == "held_out"
    spoiled["gold"].values[out] = 3
    again = bayesmeta.fit(spoiled, num_warmup=500, num_samples=500)
    np.testing.assert_array_equal(again["posterior"]["mu"], tree["posterior"]["mu"])


def test_beta_that_the_prior_does_not_infer_is_refused(evidence):
    with pytest.raises(ValueError, match="HIERARCHICAL_BETA"):
        bayesmeta.fit(evidence, bayesmeta.HIERARCHICAL, beta="infer")
    with pytest.raises(ValueError, match="nothing to fit"):
        bayesmeta.fit(evidence.isel(task=evidence["split"].values == "held_out"))


def test_inferred_beta_recovers_the_temperature():
    """Answers drawn at beta = 2 from flatter scores: the posterior of beta must cover 2."""
    rng = np.random.default_rng(1)
    scores = rng.normal(size=(400, 2, 4))
    sharp = softmax(2 * scores, axis=2)
    skill = rng.integers(0, 2, 400)
    gold = np.array([rng.choice(4, p=sharp[n, skill[n]]) for n in range(400)])
    data = from_log_probabilities(
        scores - logsumexp(scores, axis=2, keepdims=True),
        gold=gold,
        task=[f"t{i}" for i in range(400)],
        skill=["a", "b"],
        domain=["d0"] * 400,
        split=["reflect"] * 400,
        features=rng.normal(size=(400, 1)),
        feature=["noise"],
    )
    tree = bayesmeta.fit(data, beta="infer", num_warmup=300, num_samples=300, num_chains=2)
    beta = tree["posterior"]["beta"].values
    assert abs(beta.mean() - 2) < 3 * beta.std()
    assert abs(beta.mean() - 1) > 3 * beta.std()


def test_verdicts_without_features_or_domains_go_all_the_way(tmp_path):
    """A table of right and wrong, and nothing else: the skill that is right more often wins."""
    rng = np.random.default_rng(0)
    lines = ["task,skill,correct,split"]
    for i in range(80):
        split_name = "held_out" if i % 4 == 0 else "reflect"
        for skill, ability in (("direct", 0.3), ("cot", 0.8)):
            lines.append(f"t{i},{skill},{int(rng.random() < ability)},{split_name}")
    path = tmp_path / "verdicts.csv"
    path.write_text("\n".join(lines) + "\n")
    verdicts = bayesmeta.from_verdicts(path)
    # One domain leaves the scale of domains to its prior: a funnel, which takes small steps.
    tree = bayesmeta.fit(verdicts, num_warmup=1000, num_samples=1500, target_accept=0.95)
    check_converged(tree)
    bayesmeta.save_posterior(tree, tmp_path / "p.nc")
    _, heldout = split(verdicts)
    weight = predict(bayesmeta.load_posterior(tmp_path / "p.nc"), heldout)["weight"]
    assert float(weight.sel(skill="cot").mean()) > 0.7
    assert np.isfinite(judge(tree, verdicts).table.loc["posterior", "log_score"])
