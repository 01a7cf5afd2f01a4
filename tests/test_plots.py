import io
import xml.etree.ElementTree as ElementTree

import arviz as az
import numpy as np
import pytest
from matplotlib.text import Text
from simulated_scores import SKILLS, simulate

from bayesmeta import metrics, plots
from bayesmeta.baselines import no_pooling, uniform
from bayesmeta.diagnostic_plots import diagnostic_figures, worst_mixing
from bayesmeta.heldout import POSTERIOR, heldout_table
from bayesmeta.learning_curve import learning_curve
from bayesmeta.model_graph import model_graph, model_graph_svg

REFLECT, HELD_OUT = simulate(60, seed=1), simulate(60, seed=2)
DOMAINS = ("domain_0", "a domain with a rather long name", "costs $5 and $7", "domain_3")


def text_of(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=40)  # must draw without a warning
    assert len(buffer.getvalue()) > 2000
    return " ".join(text.get_text() for text in figure.findobj(Text))


@pytest.fixture(scope="module")
def tree():
    rng = np.random.default_rng(0)
    slow = np.cumsum(rng.normal(size=(4, 200)), axis=1) / 10  # a random walk: mixes worst
    return az.from_dict(
        {
            "posterior": {
                "tau_E": slow,
                "mu": rng.normal(size=(4, 200, 4)),
                "fixed": np.zeros((4, 200)),
            },
            "sample_stats": {
                "diverging": rng.random((4, 200)) < 0.01,
                "energy": rng.normal(size=(4, 200)),
            },
        },
        dims={"mu": ["skill"]},
        coords={"skill": list(SKILLS)},
    )


@pytest.mark.parametrize("by", ["domain", "skill"])
def test_strategy_weights(by):
    draws = np.random.default_rng(0).dirichlet(np.ones(4), size=(300, 4))
    figure = plots.strategy_weights(draws, DOMAINS, SKILLS, by=by)
    text = text_of(figure)
    assert all(skill in text for skill in SKILLS)
    panels = [axis for axis in figure.axes if axis.get_visible()]
    assert len(panels) == 4
    # Row 0 of panel 0: the 90 % bar spans the quantiles of its draws.
    low, high = np.quantile(draws[:, 0, 0], [0.05, 0.95])
    assert panels[0].lines[0].get_xdata() == pytest.approx([low, high])


def test_calibration_learning_curve_and_differences_show_their_numbers():
    strategies = {POSTERIOR: no_pooling(REFLECT, HELD_OUT)}
    curve = metrics.calibration_curve(HELD_OUT.mix(strategies[POSTERIOR]), HELD_OUT.gold)
    figure = plots.calibration({POSTERIOR: curve, "uniform": curve})
    assert POSTERIOR in text_of(figure)
    drawn = np.asarray(figure.axes[0].lines[1].get_ydata())
    np.testing.assert_allclose(drawn, curve.frequency)

    table = heldout_table(REFLECT, HELD_OUT, strategies)
    text = text_of(plots.heldout_differences(table))
    assert "router" in text and "oracle over skills (bound)" in text

    def fit_predict(subsets):
        return [no_pooling(REFLECT.take(tasks), HELD_OUT) for tasks in subsets]

    methods = {"uniform mixture": uniform}
    lines = learning_curve(REFLECT, HELD_OUT, fit_predict, (2, 4), 2, methods=methods)
    text = text_of(plots.learning_curve(lines))
    assert "uniform mixture" in text and "reflect tasks per domain" in text


def test_an_infinite_difference_is_written_out():
    table = heldout_table(REFLECT, HELD_OUT, {POSTERIOR: no_pooling(REFLECT, HELD_OUT)})
    table.loc["router", "diff_to_posterior"] = -np.inf
    assert "−∞" in text_of(plots.heldout_differences(table))


def test_heat_map_and_overview():
    figure = plots.skill_by_domain(HELD_OUT)
    cell = HELD_OUT.log_likelihood[HELD_OUT.domain == "domain 0", 0].mean()
    assert f"{cell:.2f}".replace("-", "−") in text_of(figure)
    assert "60 tasks by domain" in text_of(plots.evidence_overview(HELD_OUT))


def test_diagnostics_show_what_mixes_worst(tree):
    worst = worst_mixing(tree, limit=3)
    assert next(iter(worst.data_vars)) == "tau_E"
    assert "fixed" not in worst
    figures = diagnostic_figures(tree, ["mu", "tau_E"], num_traces=3, num_pairs=2)
    assert set(figures) == {"trace", "rank", "pair", "energy"}
    assert "tau_E" in text_of(figures["trace"])
    assert "[" in text_of(figures["rank"])
    for name in ("pair", "energy"):
        text_of(figures[name])
    import matplotlib.pyplot as plt

    assert plt.get_fignums() == []


def test_diagnostics_without_sampler_statistics(tree):
    bare = type(tree).from_dict({"posterior": tree["posterior"].to_dataset()})
    assert set(diagnostic_figures(bare, ["mu"], num_traces=2, num_pairs=2)) == {
        "trace",
        "rank",
        "pair",
    }
    with pytest.raises(ValueError, match=r"no variables \['nope'\]"):
        diagnostic_figures(tree, ["nope"])
    with pytest.raises(ValueError, match="nothing to draw"):
        worst_mixing(tree, ["fixed"])


def test_model_graph_has_every_node_and_needs_nothing_from_outside():
    svg = model_graph_svg()
    assert svg == model_graph_svg()  # byte for byte
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    text = text_of(model_graph())
    for node in (r"$\Theta_I$", r"$\Theta_E$", "$I$", "$E$", "$F$", "$A$", "$O$", "$G$"):
        assert node in text
    assert "added here" in text and "added here" not in text_of(model_graph(literal=True))


def test_bad_input():
    with pytest.raises(ValueError, match=r"draws must have shape \[draws, 4, 4\], got \(3, 4\)"):
        plots.strategy_weights(np.zeros((3, 4)), DOMAINS, SKILLS)
    with pytest.raises(ValueError, match='by must be "domain" or "skill", got'):
        plots.strategy_weights(np.zeros((3, 4, 4)), DOMAINS, SKILLS, by="task")
