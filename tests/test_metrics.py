import numpy as np
import pytest
from reference import metrics_by_hand as by_hand

from bayesmeta import metrics

# Three tasks with three candidates; the last task has only two, and a tie in the second.
TABLE = [[0.5, 0.3, 0.2], [0.4, 0.4, 0.2], [0.9, 0.1, 0.0]]
GOLD = np.array([0, 1, 1])


def log_table():
    with np.errstate(divide="ignore"):
        return np.log(np.array(TABLE))


def random_table(num_tasks, seed, num_candidates=4):
    rng = np.random.default_rng(seed)
    table = rng.dirichlet(np.ones(num_candidates), size=num_tasks)
    return table, rng.integers(0, num_candidates, num_tasks)


def test_hand_computed_table():
    scores = metrics.log_scores(log_table(), GOLD)
    assert scores.tolist() == pytest.approx([np.log(0.5), np.log(0.4), np.log(0.1)], abs=1e-12)
    # Right; half right (a tie of two); wrong.
    assert metrics.accuracy(log_table(), GOLD).mean == pytest.approx(1.5 / 3, abs=1e-12)
    # (0.25 + 0.09 + 0.04) + (0.16 + 0.36 + 0.04) + (0.81 + 0.81) = 0.38 + 0.56 + 1.62
    assert metrics.brier(log_table(), GOLD).score == pytest.approx(2.56 / 3, abs=1e-12)
    confidence, hit = metrics.top_label(log_table(), GOLD)
    assert confidence.tolist() == pytest.approx([0.5, 0.4, 0.9], abs=1e-12)
    assert hit.tolist() == [1.0, 0.5, 0.0]
    # One bin: |0.6 - 0.5|. Three bins: (0.1 + 0.5 + 0.9) / 3.
    assert metrics.calibration_error(log_table(), GOLD, 1).error == pytest.approx(0.1, abs=1e-12)
    assert metrics.calibration_error(log_table(), GOLD, 3).error == pytest.approx(0.5, abs=1e-12)


@pytest.mark.parametrize("num_tasks", [10, 57, 103])
def test_agrees_with_the_loops(num_tasks):
    table, gold = random_table(num_tasks, seed=num_tasks)
    log_p = np.log(table)
    confidence, hit = metrics.top_label(log_p, gold)
    assert metrics.mean_with_error(metrics.log_scores(log_p, gold)).mean == pytest.approx(
        by_hand.log_score(table.tolist(), gold), abs=1e-12
    )
    assert metrics.accuracy(log_p, gold).mean == by_hand.accuracy(table.tolist(), gold)
    assert metrics.brier(log_p, gold).score == pytest.approx(
        by_hand.brier(table.tolist(), gold), abs=1e-12
    )
    assert metrics.calibration_error(log_p, gold, num_simulations=1).error == pytest.approx(
        by_hand.equal_mass_error(confidence, hit, 10), abs=1e-12
    )
    assert metrics.mean_with_error(hit).standard_error == pytest.approx(
        by_hand.standard_error(hit.tolist()), abs=1e-12
    )


@pytest.mark.parametrize("num_bins", [1, 5, 10])
def test_brier_parts_sum_to_the_score(num_bins):
    table, gold = random_table(83, seed=1)
    parts = metrics.brier(np.log(table), gold, num_bins)
    total = parts.reliability - parts.resolution + parts.uncertainty + parts.within_bin
    assert total == pytest.approx(parts.score, abs=1e-12)
    # Four candidates, one of them gold: base rate 1/4, and 4 * (1/4) * (3/4).
    assert parts.uncertainty == pytest.approx(0.75, abs=1e-12)


def test_brier_of_a_constant_forecast_has_no_resolution_and_no_within_bin():
    log_p = np.log(np.full((40, 2), 0.5))
    parts = metrics.brier(log_p, np.zeros(40, int), num_bins=1)
    assert parts.within_bin == pytest.approx(0, abs=1e-12)
    assert parts.resolution == pytest.approx(0, abs=1e-12)
    assert parts.score == pytest.approx(0.5, abs=1e-12)


def test_padding_changes_nothing():
    table, gold = random_table(60, seed=3)
    log_p = np.log(table)
    padded = np.concatenate([log_p, np.full((60, 3), -np.inf)], axis=1)
    assert metrics.brier(padded, gold) == pytest.approx(metrics.brier(log_p, gold), abs=1e-12)
    assert metrics.accuracy(padded, gold) == metrics.accuracy(log_p, gold)
    assert metrics.calibration_error(padded, gold) == metrics.calibration_error(log_p, gold)


def test_simulated_null_reproduces_the_known_bias_at_100_tasks():
    """A calibrated predictor with Beta(2, 2) confidences scores about 0.113 in 10 bins."""
    rng = np.random.default_rng(0)
    means = []
    for seed in range(20):
        confidence = rng.beta(2, 2, size=100)
        hit = rng.random(100) < confidence
        _, null = metrics.calibration_error_of(confidence, hit, 10, num_simulations=200, seed=seed)
        means.append(null.mean())
    assert np.mean(means) == pytest.approx(0.113, rel=0.1)
    # The bias falls with the number of tasks: without a null, 0.113 would look like a defect.
    confidence = rng.beta(2, 2, size=10_000)
    assert metrics.calibration_error_of(confidence, confidence, 10, 50)[1].mean() < 0.02


def test_null_tells_a_calibrated_predictor_from_an_overconfident_one():
    table, _ = random_table(400, seed=5)
    rng = np.random.default_rng(6)
    gold = np.array([rng.choice(4, p=row) for row in table])
    honest = metrics.calibration_error(np.log(table), gold)
    assert honest.error < honest.null_q95
    sharp = table**3 / (table**3).sum(1, keepdims=True)
    boasting = metrics.calibration_error(np.log(sharp), gold)
    assert boasting.error > 2 * boasting.null_q95


def test_null_exceeds_its_95_percent_quantile_as_often_as_it_should():
    rng = np.random.default_rng(7)
    num_replications, above = 200, 0
    for seed in range(num_replications):
        confidence = rng.beta(2, 2, size=100)
        hit = rng.random(100) < confidence
        error, null = metrics.calibration_error_of(confidence, hit, 10, 200, seed)
        above += error > np.quantile(null, 0.95)
    # Binomial(200, 0.05): mean 10, sd 3.1; with the quantile's own noise 4 sd are about 14.
    assert 0 < above < 24


def test_calibration_curve_is_the_error_drawn():
    table, gold = random_table(100, seed=8)
    curve = metrics.calibration_curve(np.log(table), gold)
    error = np.sum(curve.count / 100 * np.abs(curve.confidence - curve.frequency))
    assert error == pytest.approx(metrics.calibration_error(np.log(table), gold).error, abs=1e-12)
    assert (curve.null_lower <= curve.confidence).all() and (
        curve.confidence <= curve.null_upper
    ).all()


def test_paired_difference_uses_the_pairing():
    rng = np.random.default_rng(9)
    difficulty = rng.normal(size=200) * 5
    a, b = difficulty + 0.1, difficulty + rng.normal(size=200) * 0.01
    paired = metrics.paired_difference(a, b)
    assert paired.mean == pytest.approx(0.1, abs=0.004)
    assert paired.standard_error == pytest.approx(0.01 / np.sqrt(200), rel=0.3)
    assert metrics.mean_with_error(a).standard_error > 100 * paired.standard_error


def test_clustered_error_by_hand():
    values = np.array([1.0, 3.0, 5.0, 7.0])
    cluster = np.array(["x", "x", "y", "y"])
    # Mean 4; residual sums -4 and 4; sqrt(2/1 * 32) / 4 = 2.
    assert metrics.mean_with_error(values, cluster) == pytest.approx((4.0, 2.0), abs=1e-12)
    # One task per cluster is the ordinary standard error.
    assert metrics.mean_with_error(values, np.arange(4)) == metrics.mean_with_error(values)


def test_what_cannot_be_estimated_is_nan_and_not_a_number_that_looks_right():
    assert np.isnan(metrics.mean_with_error(np.array([1.0])).standard_error)
    assert np.isnan(metrics.mean_with_error(np.ones(3), np.zeros(3)).standard_error)
    impossible = metrics.mean_with_error(np.array([-np.inf, -1.0]))
    assert impossible.mean == -np.inf and np.isnan(impossible.standard_error)
    both = metrics.paired_difference(np.array([-np.inf, 0.0]), np.array([-np.inf, 0.0]))
    assert np.isnan(both.mean)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.mean_with_error(np.array([])), "at least one task"),
        (lambda: metrics.paired_difference(np.ones(2), np.ones(3)), "same tasks"),
        (lambda: metrics.calibration_error(np.zeros((0, 2)), np.zeros(0, int)), "at least one"),
        (lambda: metrics.calibration_error(log_table(), GOLD, 0), "num_bins must be >= 1, got 0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
