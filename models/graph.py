"""Which arrows of Figure 2 are drawn, and what kind of thing each node is."""

import dataclasses
import json
from typing import Any, Literal

Strategy = Literal["categorical", "logistic_normal", "dirichlet"]
Composition = Literal["trace_mixture", "step_composition", "product_of_experts"]
Outcome = Literal["answer", "success", "verifier"]

_CHOICES: dict[str, tuple[Any, ...]] = {
    "strategy": ("categorical", "logistic_normal", "dirichlet"),
    "strategy_per": ("task", "domain"),
    "composition": ("trace_mixture", "step_composition", "product_of_experts"),
    "outcome": ("answer", "success", "verifier"),
    "skill_per": ("task", "attempt"),
    "e_to_o": ("off", "on", "reliability"),
    "i_to_o": (False, True),
    "f_to_o": (False, True),
    "g_to_f": (False, True),
    "g_to_a": (False, True),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Graph:
    """One reading of Figure 2 (Yan et al., ICML 2025).

    The figure draws I -> F, E -> F, F -> A, A -> O, E -> O and G -> O inside two plates, and these
    are always there except where a switch says otherwise. Equal data can be read through
    different graphs, which is what an ablation over graphs does.

    Attributes:
      name: what tables and attributes call this reading.
      strategy: F is ``categorical``, one latent skill drawn from the weights w; or it is itself a
        random point of the simplex, ``logistic_normal`` or ``dirichlet`` around w.
      strategy_per: a simplex F is drawn once per ``task``, or once per ``domain`` as in the figure,
        which prints F outside the task plate.
      composition: how F acts on reasoning A. ``trace_mixture``: one skill for a whole trace,
        p(A) = sum_k F_k prod_t pi_k(a_t). ``step_composition``: a new skill at every step,
        p(A) = prod_t sum_k F_k pi_k(a_t). ``product_of_experts``: all skills vote on every step,
        p(a_t) proportional to exp(sum_k F_k log pi_k(a_t)). They agree where F is a vertex.
      outcome: O is the ``answer``, with the language model's likelihood; the number of
        ``success``es in repeated attempts; or the bits of a noisy ``verifier``.
      skill_per: where attempts are repeated, one skill per ``task``, or a new one per ``attempt``.
      i_to_o: the internal view reaches O: each skill has an ability theta_k (for success and
        verifier outcomes).
      f_to_o: the strategy reaches O without A: the answer is scored with the skill's
        instruction still in the language model's context.
      e_to_o: the external view reaches O. ``on``: answers are scored with what was recalled in
        context (for success and verifier outcomes: domains have abilities of their own).
        ``reliability``: o comes from those scores with probability vartheta_d, otherwise from
        the scores without what was recalled. ``off``: the scores without it.
      g_to_f: the question's features reach F. The published figure has no such arrow.
      g_to_a: the steps are drawn given the question. The published figure has no such arrow.
    """

    name: str = "working"
    strategy: Strategy = "categorical"
    strategy_per: Literal["task", "domain"] = "task"
    composition: Composition = "trace_mixture"
    outcome: Outcome = "answer"
    skill_per: Literal["task", "attempt"] = "task"
    i_to_o: bool = False
    f_to_o: bool = True
    e_to_o: Literal["off", "on", "reliability"] = "on"
    g_to_f: bool = True
    g_to_a: bool = True

    def __post_init__(self) -> None:
        for field, choices in _CHOICES.items():
            if getattr(self, field) not in choices:
                raise ValueError(
                    f"graph {self.name!r}: {field} is {getattr(self, field)!r}; "
                    f"choose one of {list(choices)}."
                )
        if self.strategy == "categorical" and self.strategy_per == "domain":
            raise ValueError(
                f"graph {self.name!r}: a categorical strategy per domain would use one skill for "
                "all its tasks, so that tasks are not exchangeable and have no log-likelihood of "
                "their own. Use strategy='dirichlet' or 'logistic_normal' with "
                "strategy_per='domain', or strategy_per='task'."
            )
        if self.strategy_per == "domain" and self.g_to_f:
            raise ValueError(
                f"graph {self.name!r}: a strategy per domain lies outside the task plate, where a "
                "question's features cannot reach it. Use g_to_f=False, or strategy_per='task'."
            )
        if self.i_to_o and self.outcome == "answer":
            raise ValueError(
                f"graph {self.name!r}: I -> O gives skills abilities, which act on whether an "
                "attempt succeeds and not on which answer is written. Use outcome='success' or "
                "'verifier', or i_to_o=False."
            )
        if self.e_to_o == "reliability" and self.outcome != "answer":
            raise ValueError(
                f"graph {self.name!r}: the reliability of E is about answers scored with and "
                f"without it; outcome is {self.outcome!r}. Use e_to_o='on' or outcome='answer'."
            )
        if self.skill_per == "attempt" and self.outcome != "success":
            raise ValueError(
                f"graph {self.name!r}: a skill per attempt needs repeated attempts: "
                f"outcome='success', not {self.outcome!r}."
            )
        if self.composition != "trace_mixture" and self.outcome != "answer":
            raise ValueError(
                f"graph {self.name!r}: {self.composition} composes the steps of a trace, which a "
                f"{self.outcome} outcome has summed out already. Use composition='trace_mixture', "
                "or outcome='answer'."
            )

    def replace(self, name: str, **changes: Any) -> "Graph":
        """A copy under another name with some arrows or nodes changed."""
        return dataclasses.replace(self, name=name, **changes)

    def to_json(self) -> str:
        """Canonical JSON."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Graph":
        """Inverse of `to_json`. Raises ValueError where the text is not such a graph."""
        try:
            return cls(**json.loads(text))
        except (json.JSONDecodeError, TypeError) as error:
            raise ValueError(f"not a graph: {text[:80]!r} ({error}).") from error


#: What `bayesmeta.fit` uses: the question informs the strategy, one latent skill per task.
WORKING = Graph()
#: The figure as printed: F outside the task plate, E to O, and no arrow from G to F or A or from F
#: to O. It needs reasoning seen step by step, with the steps scored without the question.
LITERAL = Graph(
    name="literal",
    strategy="logistic_normal",
    strategy_per="domain",
    f_to_o=False,
    g_to_f=False,
    g_to_a=False,
)
#: The figure as printed, as far as answers scored by a language model can follow it: their traces
#: were written under the question and the skill's instruction. What was recalled is trusted as
#: far as it deserves.
LITERAL_ANSWERS = Graph(
    name="literal_answers",
    strategy="logistic_normal",
    strategy_per="domain",
    e_to_o="reliability",
    g_to_f=False,
)
#: Every arrow: I -> O, F -> O, G -> F, G -> A and E -> O.
EVERY_ARROW = Graph(name="every_arrow", outcome="success", i_to_o=True)

#: Name -> graph, for `bayesmeta ablate`.
GRAPHS: dict[str, Graph] = {
    graph.name: graph
    for graph in (
        WORKING,
        LITERAL,
        LITERAL_ANSWERS,
        EVERY_ARROW,
        # The figure's strategy of a whole domain, with what was recalled taken at its word.
        LITERAL_ANSWERS.replace("domain_strategy", e_to_o="on"),
        Graph("no_question", g_to_f=False),
        Graph("no_memory", e_to_o="off"),
        Graph("reliability", e_to_o="reliability"),
    )
}


def named_graph(name: str) -> Graph:
    """The registered graph of this name. Raises ValueError with the names there are."""
    try:
        return GRAPHS[name]
    except KeyError:
        raise ValueError(f"no graph named {name!r}; known: {', '.join(GRAPHS)}.") from None
