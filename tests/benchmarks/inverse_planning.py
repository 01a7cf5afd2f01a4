"""Which skill wrote this reasoning? Inverse planning on a real model's traces of known skills.

Run: python tests/benchmarks/inverse_planning.py [--tasks 30] [--out bench/inverse_planning].
The embedded language model writes reasoning in up to 3 steps under each of four skills (answer at
once, think step by step, split into smaller questions, go by recalled examples) for tasks of four
families. In every state the candidates are the steps that it writes under the four prompts, and
each is scored under each prompt, so pi_k(step) is its own probability, renormalised over explicit
candidates. From the steps of a trace alone the skill is inferred: by the static model and by the
switching one, whose rationality and skill prior are fitted to the reflect tasks. They are compared
on the held-out tasks with chance and with a text classifier (TF-IDF of words and of character
n-grams, logistic regression) that is trained on the reflect tasks' traces and their skills, which
inverse planning never sees.

What the model says is kept in the folder, so a second run takes a minute. Prints accuracy and mean
log score (nats per trace) with standard errors over tasks, paired differences, and the confusion
matrix, of which it writes a picture. The last line is one JSON object. --record PATH writes the
observed steps to a file that `bayesmeta explain` and the notebook read.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

FAMILIES = ("chain_sum", "letter_counting", "leg_counting", "number_sorting")


def skills() -> tuple[Any, ...]:
    from bayesmeta import Skill

    return (
        Skill("direct", "Reply with the answer only."),
        Skill("step_by_step", "Think step by step, one short step a line."),
        Skill("decompose", "Split this into smaller questions, one a line."),
        Skill("recall", "Answer in the same way.", recall=3),
    )


def observe(folder: Path, num_tasks: int) -> xr.Dataset:
    from rich.console import Console

    import bayesmeta
    from bayesmeta.step_evidence import observe_steps
    from bayesmeta.step_tree import StepSettings

    tasks = bayesmeta.make_tasks(FAMILIES, num_per_family=num_tasks, seed=77)
    console = Console()

    def progress(done: int, total: int, message: str) -> None:
        console.print(f"{message}: {done} of {total} tasks")

    settings = StepSettings(max_steps=3, max_step_tokens=16, seed=3)
    return observe_steps(
        bayesmeta.LocalLLM(),
        tasks,
        skills(),
        num_traces=1,
        settings=settings,
        without_question=False,
        without_skill=False,
        cache=folder / "cache",
        batch_size=2,
        progress=progress,
    )


def inferred(dataset: xr.Dataset, chains: dict[str, int]) -> dict[str, np.ndarray]:
    """Probabilities [held-out trace, skill] by each model; nothing is fitted to labels but the
    classifier."""
    from bayesmeta.inverse_planning import explain_traces, infer_skills
    from bayesmeta.models.inverse_planning import STATIC, SWITCHING
    from bayesmeta.posterior import group

    reflect, heldout = (dataset.sel(task=dataset["split"] == s) for s in ("reflect", "held_out"))
    names = list(map(str, dataset["skill"].values))
    found = {}
    for prior in (STATIC, SWITCHING):
        fit = infer_skills(reflect, prior, **chains)
        status = fit.tree.attrs["status"]
        posterior = group(fit.tree, "posterior")
        summary = {
            site: f"{float(posterior[site].mean()):.2f} (sd {float(posterior[site].std()):.2f})"
            for site in ("beta_a", "switch")
            if site in posterior
        }
        print(f"{prior.name}: {status}, {summary}")
        told = explain_traces(fit.tree, heldout)
        found[prior.name] = told.traces[names].to_numpy()
        if prior is STATIC:
            found["labels"] = told.traces["drawn_under"].to_numpy()
            found["task"] = told.traces["task"].to_numpy()
    found["text classifier"] = classified(*texts(reflect), texts(heldout)[0], names)
    found["chance"] = np.full_like(found["static"], 1 / len(names))
    return found


def texts(dataset: xr.Dataset) -> tuple[list[str], list[str]]:
    """Traces and skills, in the order of `read_traces`."""
    there = np.isfinite(dataset["log_weight"].values) | dataset["used"].values.any(-1)
    return (
        [str(text) for text in dataset["trace_text"].values[there]],
        [str(name) for name in dataset["drawn_under"].values[there]],
    )


def classified(
    train: list[str], labels: list[str], test: list[str], names: list[str]
) -> np.ndarray:
    """Probabilities [test, skill] by logistic regression, its penalty by cross-validation."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline, make_union

    words = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\S+", ngram_range=(1, 2))
    characters = TfidfVectorizer(sublinear_tf=True, analyzer="char_wb", ngram_range=(1, 4))
    pipeline = make_pipeline(make_union(words, characters), LogisticRegression(max_iter=2000))
    search = GridSearchCV(
        pipeline,
        {"logisticregression__C": [0.1, 0.3, 1.0, 3.0, 10.0, 30.0]},
        scoring="neg_log_loss",
        cv=5,
    )
    search.fit([text or "(nothing)" for text in train], labels)
    order = [list(search.classes_).index(name) for name in names]
    return search.predict_proba([text or "(nothing)" for text in test])[:, order]


def over_tasks(values: np.ndarray, task: np.ndarray) -> tuple[float, float]:
    """Mean over traces and its standard error, tasks being what varies independently."""
    means = np.array([values[task == one].mean() for one in dict.fromkeys(task)])
    return float(means.mean()), float(means.std(ddof=1) / np.sqrt(len(means)))


def confusion(probabilities: np.ndarray, labels: np.ndarray, names: list[str]) -> np.ndarray:
    """[true, inferred] mean probability."""
    return np.stack([probabilities[labels == name].mean(0) for name in names])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--tasks", type=int, default=30, help="of each family")
    parser.add_argument("--out", type=Path, default=Path("bench/inverse_planning"))
    parser.add_argument("--record", type=Path, help="where to write the observed steps")
    parser.add_argument("--samples", type=int, default=1000, help="draws of each of 4 chains")
    options = parser.parse_args()
    from bayesmeta.inverse_planning_plot import confusion_plot
    from bayesmeta.step_io import save_steps

    start = time.perf_counter()
    options.out.mkdir(parents=True, exist_ok=True)
    dataset = observe(options.out, options.tasks)
    if options.record:
        print(f"wrote {save_steps(dataset, options.record)}")
    seconds = time.perf_counter() - start
    names = list(map(str, dataset["skill"].values))
    found = inferred(dataset, {"num_warmup": 500, "num_samples": options.samples})
    labels, task = found.pop("labels"), found.pop("task")
    true = np.array([names.index(name) for name in labels])
    score = {name: np.log(p[np.arange(len(true)), true]) for name, p in found.items()}
    right = {name: (p.argmax(1) == true).astype(float) for name, p in found.items()}
    right["chance"][:] = 1 / len(names)
    print(f"\n{len(set(task))} held-out tasks, {len(true)} traces, {len(names)} skills")
    print(f"{'':16}{'accuracy':>17}{'log score, nats':>19}{'minus classifier':>20}")
    for name in found:
        cells = [over_tasks(values[name], task) for values in (right, score)]
        cells.append(over_tasks(score[name] - score["text classifier"], task))
        print(f"{name:16}" + "".join(f"{mean:+11.3f} ({se:.3f})" for mean, se in cells))
    for name in ("static", "text classifier"):
        matrix = confusion(found[name], labels, names)
        print(f"\n{name}: mean probability of each skill (columns) for traces of each (rows)")
        for row, line in zip(names, matrix, strict=True):
            print(f"{row:16}" + "".join(f"{value:10.2f}" for value in line))
    picture = options.out / "confusion.png"
    shown = {name: confusion(found[name], labels, names) for name in ("static", "text classifier")}
    confusion_plot(shown, names).savefig(picture, dpi=150, bbox_inches="tight")
    print(f"\npicture: {picture}")
    static, switching = score["static"], score["switching"]
    difference = over_tasks(static - score["text classifier"], task)
    print(
        json.dumps(
            {
                "tasks": len(set(task)),
                "traces": len(true),
                "accuracy": {name: round(over_tasks(v, task)[0], 4) for name, v in right.items()},
                "accuracy_se": {n: round(over_tasks(v, task)[1], 4) for n, v in right.items()},
                "log_score": {name: round(over_tasks(v, task)[0], 4) for name, v in score.items()},
                "static_minus_classifier": round(difference[0], 4),
                "static_minus_classifier_se": round(difference[1], 4),
                "switching_minus_static": round(over_tasks(switching - static, task)[0], 4),
                "seconds_observing": round(seconds, 1),
            }
        )
    )


if __name__ == "__main__":
    main()
