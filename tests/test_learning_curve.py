import numpy as np
import pytest
from simulated_scores import simulate

from bayesmeta import metrics
from bayesmeta.baselines import BASELINES, complete_pooling, no_pooling, oracle, uniform
from bayesmeta.learning_curve import draw_subset, learning_curve

REFLECT, HELD_OUT = simulate(64, seed=1, spread=0.3), simulate(200, seed=2, spread=0.3)
METHODS = {"uniform mixture": uniform, "no pooling": no_pooling}


def shrunk(reflect, heldout):
    """A stand-in for the posterior with the right qualitative behaviour: partial pooling."""
    size = np.unique(reflect.domain, return_counts=True)[1].mean()
    own = size / (size + 6)
    return own * no_pooling(reflect, heldout) + (1 - own) * complete_pooling(reflect, heldout)


def each(fit, reflect=REFLECT):
    """The fit as `learning_curve` wants it: for a list of subsets."""
    return lambda subsets: [fit(reflect.take(tasks), HELD_OUT) for tasks in subsets]


def run(**kwargs):
    settings = {"sizes": (2, 8, 16), "num_subsets": 6, "methods": METHODS, "seed": 0}
    return learning_curve(REFLECT, HELD_OUT, each(shrunk), **(settings | kwargs))


def test_subsets_have_the_asked_number_per_domain_without_repeats():
    domain = np.array(["a"] * 10 + ["b"] * 3 + ["c"] * 7)
    chosen = draw_subset(domain, 5, np.random.default_rng(0))
    assert len(set(chosen)) == len(chosen)
    names, counts = np.unique(domain[chosen], return_counts=True)
    assert dict(zip(names.tolist(), counts.tolist(), strict=True)) == {"a": 5, "b": 3, "c": 5}
    others = [tuple(draw_subset(domain, 5, np.random.default_rng(s))) for s in range(20)]
    assert len(set(others)) > 10


def test_table_by_hand():
    table = run(num_subsets=3, sizes=(2,))
    scores, posterior = [], []
    for subset in range(3):
        tasks = draw_subset(REFLECT.domain, 2, np.random.default_rng([0, 2, subset]))
        chosen = REFLECT.take(tasks)
        for fit, into in ((no_pooling, scores), (shrunk, posterior)):
            predictive = HELD_OUT.mix(fit(chosen, HELD_OUT))
            into.append(metrics.log_scores(predictive, HELD_OUT.gold).mean())
    row = table[table["method"] == "no pooling"].iloc[0]
    difference = np.array(posterior) - np.array(scores)
    assert row["log_score"] == pytest.approx(np.mean(scores), abs=1e-12)
    assert row["diff"] == pytest.approx(difference.mean(), abs=1e-12)
    assert row["diff_se"] == pytest.approx(difference.std(ddof=1) / np.sqrt(3), abs=1e-12)
    assert row["reflect_tasks"] == 8


def test_learning_helps_what_learns_and_nothing_else():
    table = run(num_subsets=8).set_index(["method", "size"])
    assert table.loc[("no pooling", 16), "log_score"] > table.loc[("no pooling", 2), "log_score"]
    flat = table.loc["uniform mixture", "log_score"]
    assert flat.max() - flat.min() < 1e-12
    # With 2 tasks per domain pooling pays; a learner that ignored the subset would not show it.
    few = table.loc[("no pooling", 2)]
    assert few["diff"] > 2 * few["diff_se"] > 0


def test_a_size_that_uses_up_every_domain_has_one_subset():
    table = run(sizes=(16, 100), num_subsets=4)
    assert set(table["num_subsets"]) == {1}
    assert np.isnan(table["diff_se"].to_numpy()).all()
    assert set(table["reflect_tasks"]) == {64}


class Interrupted(RuntimeError):
    pass


def test_resumes_per_size_and_recomputes_nothing_that_was_stored():
    cache, calls = {}, []

    def counted(reflect, heldout):
        calls.append(reflect.num_tasks)
        if len(calls) == 5:
            raise Interrupted
        return shrunk(reflect, heldout)

    settings = {"sizes": (2, 4), "num_subsets": 3, "methods": METHODS, "cache": cache}
    with pytest.raises(Interrupted):
        learning_curve(REFLECT, HELD_OUT, each(counted), **settings)
    assert len(calls) == 5 and len(cache) == 3 * 3  # every method at the first size
    resumed = learning_curve(REFLECT, HELD_OUT, each(counted), **settings)
    assert len(calls) == 8  # the second size again, the first not
    assert resumed.equals(run(sizes=(2, 4), num_subsets=3))
    learning_curve(REFLECT, HELD_OUT, each(counted), **settings)
    assert len(calls) == 8


def test_cache_knows_other_data_seeds_and_fits():
    cache = {}
    run(sizes=(2,), cache=cache)
    size = len(cache)
    run(sizes=(2,), cache=cache, seed=1)
    assert len(cache) == 2 * size
    run(sizes=(2,), cache=cache, fit_name="another prior")
    assert len(cache) == 2 * size + 6  # only the posterior's cells
    fewer = REFLECT.take(np.arange(60))
    learning_curve(fewer, HELD_OUT, each(shrunk, fewer), (2,), 6, methods=METHODS, cache=cache)
    assert len(cache) == 3 * size + 6


def test_defaults_progress_and_the_bound():
    seen = []
    table = learning_curve(
        REFLECT,
        HELD_OUT,
        each(shrunk),
        (2,),
        1,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert set(table["method"]) == {"posterior", *BASELINES}
    assert seen[-1] == (len(BASELINES) + 1, len(BASELINES) + 1)
    best = metrics.log_scores(HELD_OUT.mix(oracle(REFLECT, HELD_OUT)), HELD_OUT.gold).mean()
    row = table[table["method"] == "oracle over skills"].iloc[0]
    assert row["log_score"] == pytest.approx(best)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [({"sizes": ()}, "sizes must be >= 1"), ({"num_subsets": 0}, "num_subsets >= 1, got")],
)
def test_bad_input(kwargs, message):
    with pytest.raises(ValueError, match=message):
        run(**kwargs)
    with pytest.raises(ValueError, match="tasks in both splits, got 0 reflect"):
        learning_curve(REFLECT.take([]), HELD_OUT, each(shrunk))
