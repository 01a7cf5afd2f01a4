"""Bradley-Terry on real preferences: rewards with intervals, judges' reliability and biases.

Run: python tests/benchmarks/preferences.py [FOLDER]. FOLDER (default: ../shared/data beside the
repository) holds
  pandalm_pairs/pairs.jsonl      idx, group, model_1, model_2, annotator1..3, gpt35_judge,
                                 pandalm7b_judge (1, 2, 0 tie), response1, response2
  llmbar_judges/verdicts.csv     subset, item, judge, strategy, swapped, winner; items.jsonl: label
A set that is absent is skipped, and the reason printed.

pandalm_pairs ranks five models by three human and two machine judges. llmbar_judges has two items,
the output that people preferred and the other one, so that a judge's reliability is how sharply it
tells them apart, and its liking for what is shown first is seen too; a judge is a language model
under a way of prompting (those named by --strategies).

A quarter of the groups (instructions, or pairs of outputs) is held out. The held-out log score,
nats per comparison, is compared with a maximum-likelihood Bradley-Terry model with the same ties
but without judges and biases, with the frequencies of each pair of items, counted with one of each
outcome beforehand, and with one frequency for all; differences are paired by comparison, and their
standard errors are over groups. The last line is one JSON object with these for each set.
"""

import argparse
import dataclasses
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.special import log_softmax, logsumexp

from bayesmeta.metrics import mean_with_error
from bayesmeta.models.contrasts import contrast
from bayesmeta.preferences import Preferences, PreferenceWarning, draws_of, read_preferences

DEFAULT = Path(__file__).resolve().parents[3] / "shared" / "data"


def pandalm_pairs(folder: Path, _: list[str]) -> pd.DataFrame:
    wide = pd.read_json(folder / "pairs.jsonl", lines=True)
    names = ["annotator1", "annotator2", "annotator3", "gpt35_judge", "pandalm7b_judge"]
    table = wide.melt(
        id_vars=["group", "model_1", "model_2", "response1", "response2"],
        value_vars=names,
        var_name="judge",
        value_name="winner",
    )
    table = table[table["winner"] >= 0]  # -1 is a reply that could not be read
    for side in ("1", "2"):
        length = table[f"response{side}"].astype(str).str.len()
        table[f"length_{side}"] = length.clip(lower=1)
    table = table.rename(columns={"model_1": "item_1", "model_2": "item_2"})
    return table.drop(columns=["response1", "response2"]).assign(first=1)


def llmbar_judges(folder: Path, strategies: list[str]) -> pd.DataFrame:
    table = pd.read_csv(folder / "verdicts.csv")
    table = table[table["strategy"].isin(strategies)]
    items = pd.read_json(folder / "items.jsonl", lines=True)[["subset", "item", "label"]]
    table = table.merge(items, on=["subset", "item"])
    better = np.where(table["label"] == 1, "preferred by people", "other")
    worse = np.where(table["label"] == 1, "other", "preferred by people")
    return pd.DataFrame(
        {
            "item_1": better,
            "item_2": worse,
            "winner": table["winner"],
            "judge": table["judge"] + " / " + table["strategy"],
            "first": np.where(table["swapped"] == 1, 2, 1),
            "group": table["subset"] + "/" + table["item"].astype(str),
        }
    )


SETS = {"pandalm_pairs": pandalm_pairs, "llmbar_judges": llmbar_judges}


def part(known: Preferences, rows: np.ndarray) -> Any:
    """Some comparisons, with the items and judges of all."""
    fields = ("item_1", "item_2", "winner", "judge", "order", "x")
    taken = {name: getattr(known.data, name)[rows] for name in fields}
    return dataclasses.replace(known.data, **taken)


def log_scores(tree: Any, data: Any) -> np.ndarray:
    """[comparison] log E[p(winner)] over posterior draws, in nats."""
    sites = set(map(str, tree["posterior"].data_vars))

    def of(name: str) -> np.ndarray:
        return draws_of(tree, name)[:: max(1, len(draws_of(tree, "R")) // 400)]

    one, two, judge = (np.asarray(getattr(data, n)) for n in ("item_1", "item_2", "judge"))
    R = of("R")
    gap = R[:, one] - R[:, two]
    if "zeta" in sites:
        gap = gap + of("zeta") @ np.asarray(data.x).T
    if "a" in sites:
        gap = gap * of("a")[:, judge]
    if "g" in sites:
        gap = gap + of("g")[:, judge] * np.asarray(data.order)
    logits = np.stack([of("log_nu")[:, judge], gap / 2, -gap / 2], -1)
    table = log_softmax(logits, -1)
    found = np.take_along_axis(table, np.asarray(data.winner)[None, :, None], 2)[..., 0]
    return logsumexp(found, axis=0) - np.log(len(found))


def maximum_likelihood(train: Any, test: Any) -> np.ndarray:
    """Scores of rewards and one tie parameter that maximise the likelihood."""
    C = contrast(train.num_items)

    def table(theta: np.ndarray, data: Any) -> np.ndarray:
        R = C @ theta[1:]
        gap = R[np.asarray(data.item_1)] - R[np.asarray(data.item_2)]
        return log_softmax(np.stack([np.full(len(gap), theta[0]), gap / 2, -gap / 2], -1), -1)

    def loss(theta: np.ndarray) -> float:
        rows = table(theta, train)
        chosen = np.take_along_axis(rows, np.asarray(train.winner)[:, None], 1)
        return float(-chosen.sum() + 1e-6 * theta @ theta)  # so that a mode exists

    theta = minimize(loss, np.zeros(train.num_items), method="BFGS").x
    return np.take_along_axis(table(theta, test), np.asarray(test.winner)[:, None], 1)[:, 0]


def frequencies(train: Any, test: Any, by_pair: bool) -> np.ndarray:
    """Scores of counted outcomes, turned so that items come in one order."""
    counts: dict[tuple[int, int], np.ndarray] = {}

    def key(data: Any, c: int) -> tuple[tuple[int, int], int]:
        one, two, won = (int(getattr(data, n)[c]) for n in ("item_1", "item_2", "winner"))
        if one > two:
            one, two, won = two, one, (0, 2, 1)[won]
        return ((one, two) if by_pair else (0, 0)), won

    for c in range(len(train.winner)):
        pair, won = key(train, c)
        counts.setdefault(pair, np.ones(3))[won] += 1
    scores = []
    for c in range(len(test.winner)):
        pair, won = key(test, c)
        found = counts.get(pair, np.ones(3))
        scores.append(np.log(found[won] / found.sum()))
    return np.array(scores)


def run(name: str, table: pd.DataFrame) -> dict[str, Any]:
    from bayesmeta.preferences import fit_preferences

    known = read_preferences(table)
    group = table["group"].astype(str).to_numpy()
    names = np.unique(group)
    held = np.random.default_rng(2026).permutation(names)[: len(names) // 4]
    test_rows = np.isin(group, held)
    train = dataclasses.replace(known, data=part(known, np.flatnonzero(~test_rows)))
    test = part(known, np.flatnonzero(test_rows))
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("default", PreferenceWarning)
        found = fit_preferences(train, num_chains=4, num_warmup=400, num_samples=750)
    took = time.perf_counter() - start
    print(
        f"\n=== {name}: {len(table)} comparisons of {len(known.item)} items by "
        f"{len(known.judge)} judges, {len(names)} groups; {took:.0f} s, "
        f"{found.tree.attrs['status']}: {found.tree.attrs['status_detail']}"
    )
    print(found.table.round(3).to_string())
    print(found.judges.sort_values("reliability", ascending=False).round(2).to_string())
    if "zeta" in found.tree["posterior"]:
        zeta = draws_of(found.tree, "zeta")
        for p, covariate in enumerate(known.covariate):
            print(f"bias by {covariate}: {zeta[:, p].mean():+.3f} (sd {zeta[:, p].std():.3f})")
    ours = log_scores(found.tree, test)
    others = {
        "maximum likelihood": maximum_likelihood(train.data, test),
        "frequencies of each pair": frequencies(train.data, test, True),
        "one frequency for all": frequencies(train.data, test, False),
    }
    result: dict[str, Any] = {
        "log_score": round(float(ours.mean()), 4),
        "n": len(ours),
        "status": found.tree.attrs["status"],
    }
    print(f"held-out log score of the posterior: {ours.mean():.4f} nats (n = {len(ours)})")
    for other, scores in others.items():
        mean, error = mean_with_error(ours - scores, group[test_rows])
        print(f"  minus {other}: {mean:+.4f} (SE {error:.4f})")
        result[f"minus {other}"] = [round(float(mean), 4), round(float(error), 4)]
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=DEFAULT)
    parser.add_argument("--sets", nargs="+", choices=tuple(SETS), default=list(SETS))
    parser.add_argument("--strategies", nargs="+", default=["Vanilla", "CoT"])
    options = parser.parse_args()
    results = {}
    for name in options.sets:
        try:
            table = SETS[name](options.folder / name, options.strategies).reset_index(drop=True)
        except (OSError, ValueError, KeyError) as error:
            print(f"\n=== {name}: skipped, {type(error).__name__}: {error}", flush=True)
            continue
        results[name] = run(name, table)
    print(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
