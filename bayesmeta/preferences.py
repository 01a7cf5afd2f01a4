"""Preferences between pairs, from a table to a posterior over rewards.

    found = fit_preferences("pairs.csv")     # item_1, item_2, winner; judge, first, length_1, ...
    found.table

The reward R(F; O, Theta_I, Theta_E) of Yan et al. (ICML 2025) by a Bradley-Terry model: items may
be skills, strategies, models or answers.
"""

import dataclasses
import os
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import xarray as xr

from bayesmeta.posterior import group
from bayesmeta.posterior_tree import datatree

if TYPE_CHECKING:
    from bayesmeta.models.bradley_terry import PreferenceData
    from bayesmeta.models.prior import Prior

_REQUIRED = ("item_1", "item_2", "winner")
DIMS = {
    "u": ["contrast"],
    "R": ["item"],
    "zeta": ["covariate"],
    "g": ["judge"],
    "a": ["judge"],
    "log_a": ["judge_contrast"],
    "log_nu": ["judge"],
    "winner": ["comparison"],
}


class PreferenceWarning(UserWarning):
    """The comparisons say less than they seem to."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Preferences:
    """Comparisons with their names.

    Attributes:
      data: arrays for `bayesmeta.models.bradley_terry.bradley_terry`.
      item, judge, covariate: names.
      groups: items between which there is a chain of comparisons, largest group first.
      flags: what the comparisons cannot say, in words; empty if nothing is amiss.
    """

    data: "PreferenceData"
    item: tuple[str, ...]
    judge: tuple[str, ...]
    covariate: tuple[str, ...]
    groups: tuple[tuple[str, ...], ...]
    flags: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class PreferenceFit:
    """A posterior over rewards.

    Attributes:
      tree: for ArviZ; its attribute ``status`` says whether to believe it.
      table: a row for each item, best first: ``reward``, ``lower`` and ``upper`` of its interval,
        ``probability_best``, ``expected_rank`` (1 is best), ``comparisons``.
      judges: a row for each judge: ``reliability`` (a), ``first_shown`` (g, on logits), and
        ``tie_rate`` between equals, each with its interval.
      flags: see `Preferences`.
    """

    tree: xr.DataTree
    table: pd.DataFrame
    judges: pd.DataFrame
    flags: tuple[str, ...]


def read_preferences(table: pd.DataFrame | str | os.PathLike[str]) -> Preferences:
    """Check a table of comparisons and number its items.

    Args:
      table: columns ``item_1``, ``item_2`` and ``winner`` (1, 2, or 0 for a tie); optionally
        ``judge``, ``first`` (1 or 2: which item was shown first), ``length_1`` and ``length_2``
        (of the answers, in any unit, > 0), and pairs ``NAME_1``, ``NAME_2`` of other covariates.
        Or the path of a CSV file.

    Raises:
      ValueError: columns are missing, there are no rows or fewer than two items, an item meets
        itself, or a value is none of those it may be; the row is named.
    """
    from bayesmeta.models.bradley_terry import PreferenceData

    if not isinstance(table, pd.DataFrame):
        table = pd.read_csv(table)
    missing = [name for name in _REQUIRED if name not in table.columns]
    if missing:
        raise ValueError(
            f"the table lacks the columns {missing}; it has {list(map(str, table.columns))}. "
            "Wanted item_1, item_2 and winner (1, 2, or 0 for a tie)."
        )
    if not len(table):
        raise ValueError("the table has no comparisons. Give at least one row.")
    table = table.reset_index(drop=True)
    names = {}
    for column in ("item_1", "item_2"):
        given = np.asarray(table[column], dtype=object)
        _refuse(np.asarray(pd.isna(given)), given, column, "a name")
        names[column] = given.astype(str)
    _refuse(names["item_1"] == names["item_2"], names["item_1"], "item_1", "two items")
    winner = _codes(table, "winner", (0, 1, 2))
    order = np.zeros(len(table))
    if "first" in table.columns:
        order = np.array([0.0, 1.0, -1.0])[_codes(table, "first", (0, 1, 2), missing=0)]
    judge = (table["judge"] if "judge" in table else pd.Series(["judge"] * len(table))).astype(str)
    covariates, z = _covariates(table)
    item = tuple(sorted(set(names["item_1"]) | set(names["item_2"])))
    judges = tuple(sorted(set(judge)))
    ids = [np.searchsorted(item, names[column]) for column in ("item_1", "item_2")]
    groups, flags = _connected(ids[0], ids[1], winner, item)
    import jax.numpy as jnp

    float_ = jnp.result_type(float)
    data = PreferenceData(
        item_1=jnp.asarray(ids[0], jnp.int32),
        item_2=jnp.asarray(ids[1], jnp.int32),
        winner=jnp.asarray(winner, jnp.int32),
        judge=jnp.asarray(np.searchsorted(judges, judge.to_numpy()), jnp.int32),
        order=jnp.asarray(order, float_),
        x=jnp.asarray(z, float_),
        num_items=len(item),
        num_judges=len(judges),
        has_ties=bool((winner == 0).any()),
        has_order=bool(order.any()),
    )
    return Preferences(data, item, judges, covariates, groups, flags)


def fit_preferences(
    table: pd.DataFrame | str | os.PathLike[str] | Preferences,
    prior: "Prior | None" = None,
    *,
    engine: Literal["nuts", "pyro_nuts"] = "nuts",
    interval: float = 0.9,
    rng_seed: int = 0,
    **settings: Any,
) -> PreferenceFit:
    """Infer rewards, reliabilities and biases from comparisons.

    Args:
      table: see `read_preferences`.
      prior: by default `bayesmeta.models.bradley_terry.BRADLEY_TERRY`.
      engine: ``"nuts"``, or ``"pyro_nuts"`` for the same model in Pyro.
      interval: probability of the central intervals.
      rng_seed, settings: see `bayesmeta.inference.nuts.nuts`.

    Warns:
      PreferenceWarning: all comparisons tie, or a group of items was never compared with another,
        directly or through others: then only the prior ranks across the gap.
    """
    from bayesmeta.models.bradley_terry import BRADLEY_TERRY

    if not 0 < interval < 1:
        raise ValueError(f"interval is {interval}, wanted a probability such as 0.9.")
    known = table if isinstance(table, Preferences) else read_preferences(table)
    for flag in known.flags:
        warnings.warn(flag, PreferenceWarning, stacklevel=2)
    prior = BRADLEY_TERRY if prior is None else prior
    language = "numpyro"
    if engine == "pyro_nuts":
        from bayesmeta.inference.pyro_nuts import pyro_nuts as run
        from bayesmeta.models.bradley_terry_pyro import bradley_terry
        from bayesmeta.models.pyro_data import to_torch

        model_args, language = to_torch((known.data, prior)), "pyro"
    elif engine == "nuts":
        from bayesmeta.inference.nuts import nuts as run
        from bayesmeta.models.bradley_terry import bradley_terry

        model_args = (known.data, prior)
    else:
        raise ValueError(f"engine must be 'nuts' or 'pyro_nuts', got {engine!r}.")
    result = run(bradley_terry, *model_args, rng_seed=rng_seed, **settings)
    data = known.data
    tree = datatree(
        result,
        bradley_terry,
        model_args,
        observed={"winner": data.winner},
        constant={
            name: np.asarray(getattr(data, name)) for name in ("item_1", "item_2", "judge", "order")
        },
        coords={
            "item": list(known.item),
            "judge": list(known.judge),
            "covariate": list(known.covariate),
        },
        dims={
            **DIMS,
            **{name: ["comparison"] for name in ("item_1", "item_2", "order")},
        },
        attributes={
            "model": "bradley_terry",
            "prior": prior.to_json(),
            "flags": "\n".join(known.flags),
        },
        language=language,
    )
    return PreferenceFit(
        tree, _items(known, tree, interval), _judges(known, tree, interval), known.flags
    )


def _items(known: Preferences, tree: xr.DataTree, interval: float) -> pd.DataFrame:
    R = draws_of(tree, "R")
    lower, upper = np.quantile(R, _tails(interval), axis=0)
    rank = (-R).argsort(1).argsort(1) + 1
    both = np.concatenate([known.data.item_1, known.data.item_2])
    table = pd.DataFrame(
        {
            "reward": R.mean(0),
            "lower": lower,
            "upper": upper,
            "probability_best": (rank == 1).mean(0),
            "expected_rank": rank.mean(0),
            "comparisons": np.bincount(both, minlength=len(known.item)),
        },
        index=pd.Index(known.item, name="item"),
    )
    return table.sort_values("reward", ascending=False)


def _judges(known: Preferences, tree: xr.DataTree, interval: float) -> pd.DataFrame:
    names = set(map(str, tree["posterior"].data_vars))
    J = len(known.judge)
    columns: dict[str, np.ndarray] = {}

    def add(name: str, draws: np.ndarray) -> None:
        lower, upper = np.quantile(draws, _tails(interval), axis=0)
        columns.update({name: draws.mean(0), f"{name}_lower": lower, f"{name}_upper": upper})

    add("reliability", draws_of(tree, "a") if "a" in names else np.ones((1, J)))
    if "g" in names:
        add("first_shown", draws_of(tree, "g"))
    if "log_nu" in names:
        nu = np.exp(draws_of(tree, "log_nu"))
        add("tie_rate", nu / (2 + nu))
    return pd.DataFrame(columns, index=pd.Index(known.judge, name="judge"))


def draws_of(tree: xr.DataTree, site: str) -> np.ndarray:
    """[draw, *shape] of a site, chains merged."""
    values = np.asarray(group(tree, "posterior")[site])
    return values.reshape(-1, *values.shape[2:]).astype(np.float64)


def _tails(interval: float) -> list[float]:
    return [(1 - interval) / 2, (1 + interval) / 2]


def _codes(
    table: pd.DataFrame, column: str, allowed: Sequence[int], missing: int | None = None
) -> np.ndarray:
    given = np.asarray(table[column], dtype=object)
    values = _numbers(given)
    if missing is not None:
        values = np.where(np.asarray(pd.isna(given)), missing, values)
    _refuse(~np.isin(values, list(allowed)), given, column, f"one of {list(allowed)}")
    return values.astype(np.int64)


def _covariates(table: pd.DataFrame) -> tuple[tuple[str, ...], np.ndarray]:
    """Names and differences of whatever comes in pairs NAME_1, NAME_2; lengths by their logs."""
    names = [
        str(column).removesuffix("_1")
        for column in table.columns
        if str(column).endswith("_1")
        and str(column) != "item_1"
        and f"{str(column).removesuffix('_1')}_2" in table.columns
    ]
    columns = []
    for name in names:
        pair = []
        for column in (f"{name}_1", f"{name}_2"):
            given = np.asarray(table[column], dtype=object)
            values = _numbers(given)
            if name == "length":
                _refuse(~(np.isfinite(values) & (values > 0)), given, column, "a length > 0")
                values = np.log(values)
            else:
                _refuse(~np.isfinite(values), given, column, "a finite number")
            pair.append(values)
        columns.append(pair[0] - pair[1])
    z = np.stack(columns, 1) if columns else np.zeros((len(table), 0))
    return tuple("log_length" if name == "length" else name for name in names), z


def _numbers(values: np.ndarray) -> np.ndarray:
    """Floats; NaN for what is no number."""
    return np.asarray(pd.to_numeric(pd.Series(values), errors="coerce"), np.float64)


def _refuse(wrong: np.ndarray, values: np.ndarray, column: str, wanted: str) -> None:
    rows = np.flatnonzero(wrong)
    if len(rows):
        raise ValueError(
            f"row {rows[0]}: {column} is {values[rows[0]]}, wanted {wanted}"
            f"{'' if len(rows) == 1 else f' ({len(rows)} rows are like that)'}. Mend the table or "
            "leave such rows out."
        )


def _connected(
    one: np.ndarray, two: np.ndarray, winner: np.ndarray, item: Sequence[str]
) -> tuple[tuple[tuple[str, ...], ...], tuple[str, ...]]:
    """Groups of comparable items, and what the comparisons leave to the prior."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    K, flags = len(item), []
    met = coo_array((np.ones(len(one)), (one, two)), (K, K))
    count, label = connected_components(met, directed=False)
    groups = sorted(
        (tuple(item[int(i)] for i in np.flatnonzero(label == g)) for g in range(count)),
        key=lambda group: (-len(group), group),
    )
    if count > 1:
        shown = "; ".join(
            ", ".join(group[:5]) + (", …" if len(group) > 5 else "") for group in groups
        )
        flags.append(
            f"the items fall into {count} groups that were never compared with each other: "
            f"{shown}. Only the prior ranks across the gap. Add comparisons between the groups."
        )
    if (winner == 0).all():
        flags.append(
            "every comparison is a tie, so no item was ever preferred: rewards are equal but for "
            "the prior."
        )
    else:
        # A tie is half a win for both.
        beat = coo_array(
            (
                np.ones(len(one) + (winner == 0).sum()),
                (
                    np.concatenate([np.where(winner == 2, two, one), two[winner == 0]]),
                    np.concatenate([np.where(winner == 2, one, two), one[winner == 0]]),
                ),
            ),
            (K, K),
        )
        strong, _ = connected_components(beat, directed=True, connection="strong")
        if strong > count:
            flags.append(
                f"some items won, or lost, every comparison that would tie them to the rest "
                f"({strong} strongly connected groups of wins): without a prior their rewards "
                "would be infinite (Ford 1957), and how far apart they are is the prior's say."
            )
    return tuple(groups), tuple(flags)
