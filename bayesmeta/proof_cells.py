"""What is to be proven: every model under every engine that claims its posterior.

A cell is one model under one engine, with everything needed to simulate, fit and judge. Rows whose
engine is made wrong on purpose belong to the table too, and must fail: a test that nothing fails
proves nothing.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

from bayesmeta.proof_data import (
    Sizes,
    Tempered,
    figure2_inputs,
    full_inputs,
    full_observed,
)

Tier = Literal["fast", "full"]
#: Replications: for a cell in full, and for one in the test suite.
REPLICATIONS: dict[Tier, int] = {"full": 200, "fast": 60}

#: One chain per replication, all advancing together; trajectories of at most 63 steps, because
#: all chains wait for the longest.
BATCH: dict[str, Any] = {
    "num_chains": 1,
    "num_warmup": 400,
    "num_samples": 700,
    "target_accept": 0.9,
    "max_tree_depth": 6,
}
#: About how long the cells of `figure2_full` take that take long, see `ProofCell.minutes`.
_MINUTES = {"step_composition": 12, "dirichlet": 11, "product_of_experts": 5}
#: Which entry of a site is ranked, where it is not the first.
_ENTRIES: dict[str, tuple[str, ...]] = {
    "u": ("u[0]", "u[1]"),
    "corr_F": ("corr_F[1,0]",),  # the first is always 1
    "s": (),  # indicators: their number is ranked instead
}


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """A program with inputs.

    Attributes:
      model: called as ``model(data)``.
      data: inputs; its observations are placeholders.
      with_observations: see `bayesmeta.inference.sbc.sbc`.
      log_joint: (sites, data) -> nats, by enumeration; None where another cell checks it.
    """

    model: Callable[[Any], None]
    data: Any
    with_observations: Callable[[Any, Mapping[str, Any]], Any]
    log_joint: Callable[[Mapping[str, Any], Any], float] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class ProofCell:
    """One row of the table.

    Attributes:
      model, engine: what the table calls them.
      case: makes the inputs, of the given sizes.
      sizes: of the inputs that are simulated for and fitted.
      tiny: of those whose skills are enumerated.
      fit: makes the engine, see `bayesmeta.inference.sbc`.
      replications: how many there are in each tier; None leaves the cell out of that tier.
      must_fail: whether the engine is wrong on purpose.
      vouched_only: whether only fits that the engine itself calls converged are judged, as for
        approximations that are not meant to hold everywhere. Which these are depends on data and
        never on truths, so calibration is preserved.
      double: whether the model needs double precision to be simulated and fitted.
      tolerance: largest difference from enumeration, in nats.
      ranked: deterministic quantities that are ranked besides an entry of every latent site.
      source: the module whose code, with all that it imports, the result depends on.
      minutes: about how long its full tier takes on one core. Long cells are begun first, so that
        processes side by side end at about the same time.
      note: for the reader of the table.
    """

    model: str
    engine: str
    case: Callable[[Sizes], Case]
    fit: Callable[[], Callable[..., Any]]
    sizes: Sizes = Sizes()
    tiny: Sizes = Sizes(num_tasks=5, num_domains=2, num_candidates=3)
    replications: Mapping[Tier, int | None] = dataclasses.field(
        default_factory=lambda: {"full": REPLICATIONS["full"], "fast": None}
    )
    must_fail: bool = False
    vouched_only: bool = False
    double: bool = False
    tolerance: float = 1e-8
    ranked: tuple[str, ...] = ("F[0,0]",)
    source: str = __name__
    minutes: float = 3.0
    note: str = ""

    @property
    def name(self) -> str:
        """For files."""
        return re.sub(r"[^\w.=-]+", "_", f"{self.model}-{self.engine}")


def quantities_of(case: Case, ranked: tuple[str, ...] = ("F[0,0]",)) -> tuple[str, ...]:
    """What is ranked: an entry of every latent site, ``ranked``, and the log-likelihood."""
    from bayesmeta.inference.sbc import LOG_LIKELIHOOD
    from bayesmeta.inference.structure import latent_sites, trace_sites

    sites, names = trace_sites(case.model, case.data), []
    for site in latent_sites(case.model, case.data):
        dims = len(sites[site]["value"].shape)
        first = f"{site}[{','.join('0' * dims)}]" if dims else site
        names += _ENTRIES.get(site, (first,))
    return (*names, *ranked, LOG_LIKELIHOOD)


def cells() -> list[ProofCell]:
    """Every reading of Figure 2 under every engine, in the order of the table."""
    both: Mapping[Tier, int | None] = dict(REPLICATIONS)
    figure2_cell = ProofCell("figure2", "nuts", _figure2, batched("v"), replications=both)
    controls = [
        dataclasses.replace(
            figure2_cell,
            model=f"figure2 fitted at beta={beta:g}",
            case=_unenumerated(functools.partial(_figure2, beta=beta)),
            must_fail=True,
            note="answers drawn at beta=1",
        )
        for beta in (3.0, 0.3)
    ]
    other_engines = [
        *(
            dataclasses.replace(
                figure2_cell,
                engine=engine,
                case=_unenumerated(_figure2),
                fit=functools.partial(_whitened, engine),
                replications=only_full(200),
            )
            for engine in ("whitened_nuts", "whitened_hmc")
        ),
        dataclasses.replace(
            figure2_cell,
            model="figure2, narrow prior",
            engine="svi",
            case=functools.partial(_figure2, narrow=True),
            fit=_svi,
            sizes=Sizes(num_domains=3),
            replications=only_full(200),
            vouched_only=True,
            note="posteriors near normal",
        ),
        dataclasses.replace(
            figure2_cell,
            engine="svi",
            case=_unenumerated(_figure2),
            fit=_svi,
            replications=only_full(60),
            vouched_only=True,
            note="60 replications: no normal distribution covers these posteriors",
        ),
    ]
    return [figure2_cell, *controls, *_full_cells(), *other_engines]


def _full_cells() -> list[ProofCell]:
    """The readings of Figure 2 in full: every strategy, composition and outcome."""
    from bayesmeta.models.graph import EVERY_ARROW, LITERAL, LITERAL_ANSWERS, WORKING, Graph

    graphs = [
        WORKING.replace("figure2_full"),
        LITERAL,
        LITERAL_ANSWERS,
        Graph("logistic_normal", strategy="logistic_normal"),
        Graph("dirichlet", strategy="dirichlet"),
        Graph("step_composition", composition="step_composition", strategy="dirichlet"),
        Graph(
            "product_of_experts",
            composition="product_of_experts",
            strategy="logistic_normal",
            f_to_o=False,
        ),
        EVERY_ARROW.replace("success"),
        Graph("verifier", outcome="verifier", e_to_o="off"),
    ]
    return [
        ProofCell(
            graph.name,
            "nuts",
            _full(graph),
            batched(
                *(("v", "gamma") if graph.outcome == "success" else ("v",)),
                simplex=("F_n",) if graph.strategy == "dirichlet" else (),
            ),
            sizes=Sizes(num_domains=3),
            tiny=Sizes(num_tasks=4, num_domains=2, num_candidates=3),
            minutes=_MINUTES.get(graph.name, 3.0),
        )
        for graph in graphs
    ]


def _figure2(sizes: Sizes, beta: float = 1.0, narrow: bool = False) -> Case:
    """The working model, fitted at ``beta``; under a prior that allows near-normal posteriors
    only, where ``narrow``."""
    from bayesmeta.proof_enumeration import figure2_log_joint

    model, prior = figure2_program(narrow)
    return Case(
        model,
        Tempered.of(figure2_inputs(sizes), beta),
        Tempered.observed,
        lambda sites, inputs: figure2_log_joint(sites, inputs.data, prior),
    )


@functools.cache
def figure2_program(narrow: bool) -> tuple[Callable[[Tempered], None], Any]:
    """One and the same function for all cells, which then share what is compiled for it."""
    from bayesmeta.models.figure2 import HIERARCHICAL, figure2
    from bayesmeta.models.prior import SitePrior

    prior = HIERARCHICAL
    if narrow:
        prior = prior.replace(
            "narrow",
            u=SitePrior("Normal", {"loc": 0.0, "scale": 0.6}),
            U=SitePrior("Normal", {"loc": 0.0, "scale": 0.4}),
            tau_E=SitePrior("Fixed", {"value": 0.4}),
            v=SitePrior("Normal", {"loc": 0.0, "scale": 0.4}),
        )
    return lambda inputs: figure2(inputs.data, prior), prior


def _unenumerated(case: Callable[[Sizes], Case]) -> Callable[[Sizes], Case]:
    """For cells whose program another cell compares with enumeration."""
    return lambda sizes: dataclasses.replace(case(sizes), log_joint=None)


def _full(graph: Any) -> Callable[[Sizes], Case]:
    def case(sizes: Sizes) -> Case:
        from bayesmeta.models.figure2_full import figure2_full
        from bayesmeta.models.priors import prior_for
        from bayesmeta.proof_enumeration import full_log_joint

        data = full_inputs(graph, sizes)
        prior = prior_for(graph, data)
        return Case(
            lambda data: figure2_full(data, prior, graph),
            data,
            full_observed,
            lambda sites, data: full_log_joint(sites, data, prior, graph),
        )

    return case


def batched(
    *decenter: str, simplex: tuple[str, ...] = (), **settings: Any
) -> Callable[[], Callable[..., Any]]:
    """What makes the engine that runs all replications side by side, with `BATCH` as settings."""

    def make() -> Callable[..., Any]:
        from bayesmeta.inference.sbc import batched_nuts

        return batched_nuts(**BATCH | settings, decenter=decenter, simplex=simplex)

    return make


def _whitened(engine: str) -> Callable[..., Any]:
    from bayesmeta.inference.sbc import one_by_one
    from bayesmeta.inference.whitened_hmc import whitened_hmc
    from bayesmeta.inference.whitened_nuts import whitened_nuts

    if engine == "whitened_nuts":
        return one_by_one(whitened_nuts)
    # Tasks are few and the approximation is poor, so draws are correlated and more are needed.
    return one_by_one(whitened_hmc, num_samples=4000)


def _svi() -> Callable[..., Any]:
    from bayesmeta.inference.sbc import one_by_one
    from bayesmeta.inference.svi import svi

    return one_by_one(svi, num_samples=990)


def only_full(count: int) -> Mapping[Tier, int | None]:
    return {"full": count, "fast": None}
