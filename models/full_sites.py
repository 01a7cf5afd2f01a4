"""The random sites of Figure 2 in full: which a graph has, and where their values may lie."""

from bayesmeta.models.full_data import Answers, Attempts, FullData, Steps
from bayesmeta.models.graph import Graph
from bayesmeta.models.prior import Prior

#: Site -> support that its prior must have.
SUPPORTS = {
    "u": "real",
    "U": "real",
    "tau_E": "positive",
    "lambda_E": "positive",
    "v": "real",
    "V": "real",
    "kappa_F": "positive",
    "sigma_F": "positive",
    "corr_F": "correlation",
    "vartheta": "unit",
    "theta": "real",
    "tau_gamma": "positive",
    "gamma": "real",
    "difficulty": "real",
    "phi": "positive",
    "eps_minus": "unit",
    "eps_plus": "unit",
}


def sites_of(graph: Graph, data: FullData, prior: Prior | None = None) -> list[str]:
    """Names of the sites that need a prior. A graph without G -> F has U, but does not draw it.

    ``eps`` and ``F_n``, the random strategies of single tasks or domains, need none: their
    distribution is given by the other sites. ``lambda_E`` is there where ``prior`` names it.

    Raises:
      ValueError: the graph's outcome is not what the data hold.
    """
    _check_outcome(graph, data)
    sites = ["u", "U", "tau_E"]
    if prior is not None and "lambda_E" in prior.sites:
        sites.append("lambda_E")
    sites.append("v")
    # A strategy outside the task plate cannot depend on what was recalled for one task.
    if data.num_evidence_features and graph.strategy_per == "task":
        sites.append("V")
    if graph.strategy == "dirichlet":
        sites.append("kappa_F")
    elif graph.strategy == "logistic_normal":
        sites.append("sigma_F")
        if data.num_skills > 2:
            sites.append("corr_F")
    if graph.outcome == "answer":
        return sites + (["vartheta"] if graph.e_to_o == "reliability" else [])
    if graph.i_to_o:
        sites.append("theta")
    if graph.e_to_o == "on" and data.num_domains > 1:
        sites += ["tau_gamma", "gamma"]
    if data.x.shape[1]:
        sites.append("difficulty")
    return sites + (["phi"] if graph.outcome == "success" else ["eps_minus", "eps_plus"])


def _check_outcome(graph: Graph, data: FullData) -> None:
    kind = type(data.outcome)
    if graph.outcome != "answer":
        wanted = Attempts
    else:
        wanted = Steps if graph.composition != "trace_mixture" else Answers
    if kind is Answers and not graph.g_to_a:
        raise ValueError(
            f"graph {graph.name!r} has no arrow G -> A, but the traces behind these answers were "
            "drawn given the question. Use g_to_a=True, or Steps with log_pi_without_question."
        )
    if kind is wanted or (wanted is Answers and kind is Steps):
        if kind is Steps and graph.e_to_o != "on":
            raise ValueError(
                f"graph {graph.name!r} has e_to_o={graph.e_to_o!r}, but steps are scored with what "
                "was recalled in context. Use e_to_o='on', or answers with traces averaged."
            )
        return
    raise ValueError(
        f"graph {graph.name!r} (outcome {graph.outcome!r}, composition {graph.composition!r}) "
        f"needs {wanted.__name__}, but the data hold {kind.__name__}. Build the data for this "
        "graph, or choose a graph for these data."
    )
