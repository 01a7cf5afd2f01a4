"""A pool of instructions: is its posterior better than the one that did best on validation tasks?

Run: python tests/benchmarks/prompt_pool.py [--tasks 40] [--out bench/prompt_pool].
Eight instructions that a user might write are scored by the embedded language model on tasks of
six families. The posterior over one instruction per domain (hierarchical), the posterior over one
instruction for all, the single best by the reflect tasks' log score (over all, and in each
domain), and stacking are judged on the held-out tasks; at full size, and from few reflect tasks
per domain over random subsets. What the model says is kept in the folder. The last line is one
JSON object.
"""

import argparse
import json
from pathlib import Path

import numpy as np

FAMILIES = (
    "chain_sum",
    "letter_counting",
    "leg_counting",
    "number_sorting",
    "calendar_arithmetic",
    "basic_arithmetic",
)
POOL = {
    "only": "Reply with the answer only.",
    "short": "Be brief.",
    "careful": "Be careful: the obvious answer may be wrong.",
    "expert": "You are an expert. Give the exact answer.",
    "check": "Check your answer before you give it.",
    "breath": "Take a deep breath and work on this problem step by step.",
    "format": "Give a single number, or a single list, and nothing else.",
    "nothing": "Answer.",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--tasks", type=int, default=40, help="of each family")
    parser.add_argument("--seeds", type=int, default=10, help="random subsets of each size")
    parser.add_argument("--out", type=Path, default=Path("bench/prompt_pool"))
    options = parser.parse_args()

    import bayesmeta
    from bayesmeta.families import families
    from bayesmeta.fitting import reflect_part
    from bayesmeta.heldout import format_table
    from bayesmeta.learning_curve import draw_subset
    from bayesmeta.prompt_pool import fit_pool, pool_strategies, prompt_skills
    from bayesmeta.skill_scores import skill_scores

    chosen = [name for name in FAMILIES if name in families()]
    tasks = bayesmeta.make_tasks(chosen, num_per_family=options.tasks, seed=41)
    evidence = bayesmeta.observe(
        bayesmeta.LocalLLM(), tasks, prompt_skills(POOL), cache=options.out / "cache"
    )
    reflect = skill_scores(reflect_part(evidence))
    heldout = skill_scores(evidence.sel(task=evidence["split"] == "held_out"))
    tree = fit_pool(evidence)
    print(f"{tree.attrs['status']}: {tree.attrs['status_detail']}")
    rho = tree["posterior"]["rho"].mean(("chain", "draw")).to_pandas()
    print(rho.round(2).to_string())
    table = bayesmeta.heldout_table(reflect, heldout, pool_strategies(tree, reflect, heldout))
    print(format_table(table))
    single = [name for name in table.index if "best" in name or "domain counts" in name]
    result = {"n": len(heldout.gold), "log_score": float(table.loc["posterior", "log_score"])}
    for name in ("one prompt for all, posterior", *single):
        result[name] = float(table.loc[name, "diff_to_posterior"])
        result[f"{name}, se"] = float(table.loc[name, "diff_se"])

    print("posterior minus the best of each domain by validation, nats per held-out task:")
    rng = np.random.default_rng(0)
    split = reflect_part(evidence)
    for size in (1, 2, 4, 8, 16):
        gaps = []
        for seed in range(options.seeds):
            kept = draw_subset(reflect.domain, size, rng)
            part = reflect.take(kept)
            few = fit_pool(
                split.isel(task=kept), num_chains=2, num_warmup=200, num_samples=300, rng_seed=seed
            )
            weights = pool_strategies(few, part, heldout)["posterior"]
            gaps.append(_score(weights, heldout) - _score(best_of_each(part, heldout), heldout))
        mean, se = np.mean(gaps), np.std(gaps, ddof=1) / np.sqrt(len(gaps))
        print(f"  {size:2d} tasks a domain: {mean:+.4f} (SE {se:.4f} over {len(gaps)} subsets)")
        result[f"gain_{size}"], result[f"gain_{size}_se"] = float(mean), float(se)
    print(json.dumps({k: round(v, 4) for k, v in result.items()}))


def best_of_each(reflect, heldout) -> np.ndarray:
    """All weight on the instruction with the best validation score in the task's domain."""
    weights = np.zeros(heldout.log_likelihood.shape)
    for n, domain in enumerate(heldout.domain):
        mean = reflect.log_likelihood[reflect.domain == domain].mean(0)
        weights[n, mean.argmax()] = 1.0
    return weights


def _score(weights: np.ndarray, heldout) -> float:
    return float(np.log((weights * np.exp(heldout.log_likelihood)).sum(1)).mean())


if __name__ == "__main__":
    main()
