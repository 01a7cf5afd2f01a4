"""The schema of evidence: which variables, coordinates and attributes it has."""

import dataclasses

#: Version of the layout described by `VARIABLES`, `COORDINATES` and `ATTRIBUTES`.
SCHEMA_VERSION = 1

#: A log-likelihood may exceed 0 by this many nats, which float32 sums over tokens can do.
ROUNDING = 1e-6

TOKEN_KINDS = ("scored", "generated")
TRACE = ("task", "skill", "trace")
CELL = (*TRACE, "candidate")


class EvidenceError(ValueError):
    """Evidence that breaks its schema: says which cell, its value, what was wanted, the remedy."""


#: Poorer contexts in which the same answers may have been scored too, in optional variables
#: ``log_likelihood_<context>``: whether memory and instruction were still in sight.
CONTEXTS = {
    "without_memory": (False, True),
    "without_instruction": (True, False),
    "plain": (False, False),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Variable:
    """Dimensions, the type in which it is stored, and whether it may be left out.

    ``exact`` types are wanted as they stand; of the others the kind is enough.
    """

    dims: tuple[str, ...]
    dtype: str
    optional: bool = False
    exact: bool = False


VARIABLES = {
    "log_likelihood": Variable(CELL, "float32", exact=True),
    "observed": Variable(CELL, "bool"),
    "log_weight": Variable(TRACE, "float32", exact=True),
    "gold": Variable(("task",), "int64"),
    "domain": Variable(("task",), "text"),
    "split": Variable(("task",), "text"),
    "features": Variable(("task", "feature"), "float64"),
    "num_tokens": Variable(("task", "skill", "token_kind"), "int64"),
    "question": Variable(("task",), "text", optional=True),
    "candidate_text": Variable(("task", "candidate"), "text", optional=True),
    "trace_text": Variable(TRACE, "text", optional=True),
    "verdict": Variable(TRACE, "int8", optional=True, exact=True),
    "verdict_observed": Variable(TRACE, "bool", optional=True),
    **{
        f"log_likelihood_{context}": Variable(CELL, "float32", optional=True, exact=True)
        for context in CONTEXTS
    },
}
COORDINATES = {
    "task": "text",
    "skill": "text",
    "trace": "int64",
    "candidate": "int64",
    "feature": "text",
    "token_kind": "text",
}
ATTRIBUTES = (
    "schema_version",
    "model",
    "quantisation",
    "dtype",
    "quality",
    "prompt_version",
    "skills",
    "seed",
    "sampling",
    "packages",
    "created_by",
)
#: Attributes that hold JSON.
JSON_ATTRIBUTES = {"skills": list, "sampling": dict, "packages": dict}


def storable(text: str) -> str:
    """``text`` with what a file cannot hold made visible: NUL as U+2400, surrogates as U+FFFD."""
    if "\0" in text:
        text = text.replace("\0", "\u2400")
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
