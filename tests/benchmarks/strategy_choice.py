"""Which strategy for which task, learned from tables of right and wrong: model against baselines.

Run: python tests/benchmarks/strategy_choice.py [FOLDER]. FOLDER (default: ../shared/data beside
the repository) holds any of
  bbh_strategies/outcomes.csv  task, item, strategy, correct, answer; texts of the same items in
                               cot_traces.jsonl and items.jsonl, where there are any
  game24/gpt4_samples.jsonl    row, puzzle, method, sample, correct, text; what a search wrote in
                               tot_states.csv, human solve rates in puzzles.csv, likewise
  llmbar_judges/verdicts.csv   subset, item, judge, strategy, swapped, correct; items.jsonl
A set that is absent or unreadable is skipped, and the reason printed.

The hierarchical model of `bayesmeta.models.solvability` and four baselines predict each strategy's
verdict on held-out tasks, and choose the strategy of largest expected utility, success minus
COST per token. Tokens are a quarter of the characters of what was generated, where it is recorded.
At full size every task is held out once (cross-validation over folds). The learning curve shows
2, 5, 10, 20 and 50 tasks per domain, drawn from 70 % of the tasks, to all methods, and judges them
on the other 30 %, for 20 seeds. What judges of a set share, such as the item that several of them
saw, is never on both sides. Nothing was tuned on these data.

Columns: log score of all verdicts, nats per verdict; model minus method with its standard error,
paired by task; the same of the chosen strategy's verdict alone; success and tokens of the chosen
strategy; regret, the utility lost to the best strategy of each task in hindsight; regret of the
method minus that of the model; regret per 1,000 tokens spent. Always-CoT and always-direct predict
by pooled counts. Standard errors add the variance over groups of tasks and over seeds, which is
cautious. The last line is one JSON object: for each data set, at full size, ``log_score``,
``best_baseline`` (of highest log score in hindsight), ``diff`` and ``diff_se`` (model minus it);
further keys hold regret and the curve.
"""

import argparse
import dataclasses
import json
import sys
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bayesmeta.metrics import mean_with_error
from bayesmeta.models.prior import Prior
from bayesmeta.models.solvability import INDEPENDENT_ATTEMPTS, SOLVABILITY
from bayesmeta.strategy_choice import SuccessModel, choose, judge
from bayesmeta.verdict_baselines import BASELINES, pooled_counts
from bayesmeta.verdict_counts import VerdictCounts, expected_tokens
from bayesmeta.verdicts import from_verdicts

DEFAULT = Path(__file__).resolve().parents[3] / "shared" / "data"
MODEL = "hierarchical model"
HELD_OUT_SHARE = 0.3
CHARACTERS_PER_TOKEN = 4
MEASURES = ("log_score", "chosen_log_score", "success", "tokens", "regret")


@dataclasses.dataclass(frozen=True)
class Problem:
    """Verdicts with, for each task, the group that must not be split and its stratum."""

    counts: VerdictCounts
    group: np.ndarray
    stratum: np.ndarray
    fixed: Mapping[str, str]
    prior: Prior


def problem(table: pd.DataFrame, fixed: Mapping[str, str], prior: Prior = SOLVABILITY) -> Problem:
    counts = VerdictCounts.of(from_verdicts(table))
    facts = table.drop_duplicates("task").set_index("task").loc[counts.task]
    fixed = {name: skill for name, skill in fixed.items() if skill in counts.skill}
    return Problem(
        counts, facts["group"].to_numpy(str), facts["stratum"].to_numpy(str), fixed, prior
    )


def tokens_of(text: pd.Series) -> pd.Series:
    return np.ceil(text.fillna("").astype(str).str.len() / CHARACTERS_PER_TOKEN)


def bbh_strategies(folder: Path) -> Problem:
    table = pd.read_csv(folder / "outcomes.csv")
    key = ["task", "item"]
    table["tokens"] = tokens_of(table["answer"]) if "answer" in table else 0.0
    if (traces := folder / "cot_traces.jsonl").is_file():
        long = pd.read_json(traces, lines=True)
        long["length"] = tokens_of(long["text"])
        length = table.merge(long[[*key, "length"]], on=key, how="left")["length"].to_numpy()
        traced = (table["strategy"] == "cot").to_numpy() & np.isfinite(length)
        table["tokens"] = np.where(traced, length, table["tokens"])
    if (items := folder / "items.jsonl").is_file():
        text = pd.read_json(items, lines=True)
        text["feature_log_length"] = np.log1p(text["input"].str.len())
        table = table.merge(text[[*key, "feature_log_length"]], on=key)
    table = table.rename(columns={"task": "domain", "strategy": "skill"})
    table["task"] = table["domain"] + "/" + table["item"].astype(str)
    table["group"], table["stratum"] = table["task"], table["domain"]
    return problem(table, {"always CoT": "cot", "always direct": "direct"})


def game24(folder: Path) -> Problem:
    table = pd.read_json(folder / "gpt4_samples.jsonl", lines=True)
    table["tokens"] = tokens_of(table["text"])
    if (states := folder / "tot_states.csv").is_file():
        # What a search wrote on its way; the words in which it valued states are not recorded.
        found = pd.read_csv(states)
        found["search"] = tokens_of(found["path"].str.split("|").str[-1])
        search = table["row"].map(found.groupby("row")["search"].sum()).fillna(0)
        table["tokens"] += np.where(table["method"] == "tot", search, 0)
    if (puzzles := folder / "puzzles.csv").is_file():
        rate = pd.read_csv(puzzles).set_index("row")["solved_rate"]
        rate = table["row"].map(rate).clip(0.01, 0.99)
        if np.isfinite(rate.to_numpy(float)).all():
            table["feature_human_logit"] = np.log(rate / (1 - rate))
    table = table.rename(columns={"method": "skill"})
    table["task"] = "game24/" + table["row"].astype(str)
    table["domain"] = "game24"
    table["group"], table["stratum"] = table["task"], table["domain"]
    return problem(table, {"always CoT": "cot", "always direct": "io"})


def llmbar_judges(folder: Path) -> Problem:
    """A domain is a judge on a subset, a skill the way it is prompted; no replies, so no tokens."""
    table = pd.read_csv(folder / "verdicts.csv")
    if (items := folder / "items.jsonl").is_file():
        text = pd.read_json(items, lines=True)
        length = np.log1p(text[["output_1", "output_2"]].apply(lambda c: c.astype(str).str.len()))
        text["feature_length_gap"] = (length["output_1"] - length["output_2"]).abs()
        table = table.merge(text[["subset", "item", "feature_length_gap"]], on=["subset", "item"])
    table = table.rename(columns={"strategy": "skill"})
    table["domain"] = table["subset"] + "/" + table["judge"]
    table["task"] = table["domain"] + "/" + table["item"].astype(str)
    table["group"] = table["subset"] + "/" + table["item"].astype(str)
    table["stratum"] = table["subset"]
    # The two attempts show the outputs in one order and the other: they are no repetitions.
    return problem(table, {"always CoT": "CoT", "always direct": "Vanilla"}, INDEPENDENT_ATTEMPTS)


SETS: dict[str, Callable[[Path], Problem]] = {
    "bbh_strategies": bbh_strategies,
    "game24": game24,
    "llmbar_judges": llmbar_judges,
}


def random_split(task: Problem, rng: np.random.Generator) -> np.ndarray:
    """[N] True for held-out tasks: of each stratum the same share of groups."""
    held_out = np.zeros(len(task.group), bool)
    for name in np.unique(task.stratum):
        groups = rng.permutation(np.unique(task.group[task.stratum == name]))
        count = max(1, round(HELD_OUT_SHARE * len(groups)))
        held_out |= np.isin(task.group, groups[:count]) & (task.stratum == name)
    return held_out


def few_of_each(task: Problem, among: np.ndarray, size: int, rng: np.random.Generator):
    """Indices of ``size`` tasks of each domain among these, or all of a domain with fewer."""
    domain = task.counts.domain[among]
    chosen = [rng.permutation(among[domain == name])[:size] for name in np.unique(domain)]
    return np.sort(np.concatenate(chosen))


def evaluate(
    task: Problem, reflects: list[np.ndarray], heldouts: list[np.ndarray], options: Any, seed: int
) -> tuple[dict[str, pd.DataFrame], int]:
    """For each method the held-out tasks of all runs one below another, and fits not converged."""
    model = SuccessModel(task.counts, task.prior)
    fits = model.fit(
        reflects,
        rng_seed=seed,
        num_warmup=options.warmup,
        num_samples=options.samples,
        max_tree_depth=6,
    )
    frames: dict[str, list[pd.DataFrame]] = {}
    for run, (reflect, heldout, fit) in enumerate(zip(reflects, heldouts, fits, strict=True)):
        learned, new = task.counts.take(reflect), task.counts.take(heldout)
        tokens = expected_tokens(learned, new.domain)
        offered = new.tried > 0
        probabilities = {MODEL: model.draws(fit, new.domain, new.x).mean(0)}
        probabilities |= {name: baseline(learned, new) for name, baseline in BASELINES.items()}
        choices = {
            name: choose(p, tokens, offered, options.cost_per_token)
            for name, p in probabilities.items()
        }
        for name, skill in task.fixed.items():
            column = new.skill.index(skill)
            # Where the fixed strategy was not tried, take what pooled counts would.
            probabilities[name] = pooled_counts(learned, new)
            choices[name] = np.where(
                offered[:, column], column, choose(probabilities[name], tokens, offered, 0.0)
            )
        for name, p in probabilities.items():
            frame = judge(p, choices[name], new, options.cost_per_token)
            frame["group"], frame["run"] = task.group[heldout], run
            frames.setdefault(name, []).append(frame)
    joined = {name: pd.concat(parts, ignore_index=True) for name, parts in frames.items()}
    return joined, sum(not fit.status.converged for fit in fits)


def paired(a: pd.DataFrame, b: pd.DataFrame, measure: str, over_runs: bool) -> tuple[float, float]:
    """Mean of a - b over the same tasks, and its standard error."""
    difference = (a[measure] - b[measure]).to_numpy()
    mean, error = mean_with_error(difference, a["group"].to_numpy())
    if over_runs and len(np.unique(a["run"])) > 1:
        error = np.hypot(error, mean_with_error(difference, a["run"].to_numpy())[1])
    return mean, float(error)


def summarise(found: Mapping[str, pd.DataFrame], over_runs: bool) -> dict[str, dict[str, float]]:
    """Means of each method, and differences from the model in favour of the model."""
    rows = {}
    for name, frame in found.items():
        row = {measure: float(frame[measure].mean()) for measure in MEASURES}
        for measure, sign in (("log_score", 1), ("chosen_log_score", 1), ("regret", -1)):
            mean, error = paired(found[MODEL], frame, measure, over_runs)
            row |= {f"{measure}_diff": sign * mean, f"{measure}_diff_se": error}
        spent = row["tokens"] / 1000
        row["regret_per_1000_tokens"] = row["regret"] / spent if spent else float("nan")
        rows[name] = row
    return rows


def show(title: str, rows: Mapping[str, Mapping[str, float]]) -> None:
    print(f"\n{title}")
    print(
        f"{'':33} log score   model - it (SE)    of chosen   model - it (SE)    "
        "success  tokens  regret  it - model (SE)   /1000 tok"
    )
    for name, r in rows.items():
        differences = {
            key: f"{r[f'{key}_diff']:+.4f} ({r[f'{key}_diff_se']:.4f})" if name != MODEL else ""
            for key in ("log_score", "chosen_log_score", "regret")
        }
        print(
            f"{name:33} {r['log_score']:9.4f}   {differences['log_score']:16}   "
            f"{r['chosen_log_score']:9.4f}   {differences['chosen_log_score']:16}   "
            f"{r['success']:7.3f} {r['tokens']:7.0f}  {r['regret']:6.4f}  "
            f"{differences['regret']:16}  {r['regret_per_1000_tokens']:9.3f}",
            flush=True,
        )


def against_best(rows: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    best = max(BASELINES, key=lambda name: rows[name]["log_score"])
    return {
        "log_score": round(rows[MODEL]["log_score"], 5),
        "best_baseline": best,
        "diff": round(rows[best]["log_score_diff"], 5),
        "diff_se": round(rows[best]["log_score_diff_se"], 5),
    }


def run_set(name: str, task: Problem, options: argparse.Namespace) -> dict[str, Any]:
    counts = task.counts
    print(
        f"\n=== {name}: {counts.num_tasks} tasks, {len(np.unique(counts.domain))} domains, "
        f"{len(counts.skill)} skills, {int(counts.tried.sum())} attempts, "
        f"features {list(counts.feature)}",
        flush=True,
    )
    every = np.arange(counts.num_tasks)
    curve: dict[str, Any] = {}
    salt = zlib.crc32(name.encode())
    for size in options.sizes:
        reflects, heldouts = [], []
        for seed in range(options.seeds):
            held_out = random_split(task, np.random.default_rng([salt, seed]))
            rng = np.random.default_rng([salt, seed, size])
            reflects.append(few_of_each(task, every[~held_out], size, rng))
            heldouts.append(every[held_out])
        if all(
            len(r) == counts.num_tasks - len(h) for r, h in zip(reflects, heldouts, strict=True)
        ):
            print(f"\n{size} reflect tasks per domain: skipped, no domain has more than that.")
            continue
        start = time.perf_counter()
        found, unsure = evaluate(task, reflects, heldouts, options, size)
        rows = summarise(found, over_runs=True)
        took = time.perf_counter() - start
        show(
            f"{name}, {size} reflect tasks per domain, {options.seeds} seeds ({took:.0f} s; "
            f"{unsure} fits short of R-hat 1.05 or 100 effective draws)",
            rows,
        )
        by_counts = rows["domain counts"]
        curve[str(size)] = against_best(rows) | {
            "diff_domain_counts": round(by_counts["log_score_diff"], 5),
            "diff_domain_counts_se": round(by_counts["log_score_diff_se"], 5),
            "regret": round(rows[MODEL]["regret"], 5),
        }
    fold = np.empty(counts.num_tasks, int)
    shuffled = np.random.default_rng([salt, 99])
    for stratum in np.unique(task.stratum):
        groups = shuffled.permutation(np.unique(task.group[task.stratum == stratum]))
        place = {g: i % options.folds for i, g in enumerate(groups)}
        inside = task.stratum == stratum
        fold[inside] = [place[g] for g in task.group[inside]]
    start = time.perf_counter()
    folds = [f for f in range(options.folds) if 0 < (fold == f).sum() < counts.num_tasks]
    longer = argparse.Namespace(**vars(options))
    longer.warmup, longer.samples = options.full_warmup, options.full_samples
    # One by one: chains side by side wait for each other.
    parts = [
        evaluate(task, [every[fold != f]], [every[fold == f]], longer, 1000 + f) for f in folds
    ]
    found = {name: pd.concat([part[name] for part, _ in parts]) for name in parts[0][0]}
    unsure = sum(count for _, count in parts)
    rows = summarise(found, over_runs=False)
    took = time.perf_counter() - start
    show(f"{name}, full size, {len(folds)} folds ({took:.0f} s; {unsure} fits short)", rows)
    return against_best(rows) | {
        "regret": {method: round(r["regret"], 5) for method, r in rows.items()},
        "regret_diff_se": {method: round(r["regret_diff_se"], 5) for method, r in rows.items()},
        "tokens": {method: round(r["tokens"], 1) for method, r in rows.items()},
        "curve": curve,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=DEFAULT)
    parser.add_argument("--sets", nargs="+", choices=tuple(SETS), default=list(SETS))
    parser.add_argument("--sizes", type=int, nargs="+", default=[2, 5, 10, 20, 50])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--cost-per-token", type=float, default=1e-4)
    parser.add_argument("--without-features", action="store_true")
    parser.add_argument("--warmup", type=int, default=250)
    parser.add_argument("--samples", type=int, default=400)
    # More data mix more slowly.
    parser.add_argument("--full-warmup", type=int, default=500)
    parser.add_argument("--full-samples", type=int, default=1600)
    options = parser.parse_args()
    results: dict[str, Any] = {}
    for name in options.sets:
        try:
            task = SETS[name](options.folder / name)
        except (OSError, ValueError, KeyError) as error:
            print(f"\n=== {name}: skipped, {type(error).__name__}: {error}", flush=True)
            continue
        if options.without_features:
            task = dataclasses.replace(task, counts=task.counts.without_features())
        results[name] = run_set(name, task, options)
    print(json.dumps(results))
    return 0 if results else 1


if __name__ == "__main__":
    sys.exit(main())
