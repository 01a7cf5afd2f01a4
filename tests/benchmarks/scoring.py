"""Scoring speed: the trie scorer against lm-evaluation-harness on the same requests and model.

Run: python tests/benchmarks/scoring.py [--tasks 8]. Needs the extras llm, tasks and bench.
The requests are those of `bayesmeta observe`: per task of the default families, six skills (with
sampled traces and recalled examples) times the task's candidates. The last line is one JSON
object: ``ratio_lm_eval`` (times faster), ``max_abs_diff`` (nats) and ``prefill_fraction`` (tokens
per second over distinct prefixes, relative to plain dense prefill of the same model).
"""

import argparse
import gc
import json
import logging
import os
import time
import warnings
from collections.abc import Callable
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from bayesmeta.families import make_tasks  # noqa: E402
from bayesmeta.llm.base import Sampling, ScoreRequest  # noqa: E402
from bayesmeta.llm.local import LocalLLM  # noqa: E402
from bayesmeta.llm.trie import pack, partition  # noqa: E402
from bayesmeta.prompting import score_requests, user_text  # noqa: E402
from bayesmeta.recall import ExternalMemory  # noqa: E402
from bayesmeta.skills import default_skills  # noqa: E402
from bayesmeta.tasks import HELD_OUT, REFLECT  # noqa: E402
from bayesmeta.tracing import Job, run_stages  # noqa: E402

NUM_SKILLS = 6


def make_requests(llm: LocalLLM, num_tasks: int) -> list[ScoreRequest]:
    tasks = make_tasks(num_per_family=max(5, num_tasks // 4), seed=0)
    memory = ExternalMemory([task for task in tasks if task.split == REFLECT])
    held_out = [task for task in tasks if task.split == HELD_OUT and len(task.candidates) == 4]
    # Every so many, so that all families come up.
    chosen = held_out[:: max(1, len(held_out) // num_tasks)][:num_tasks]
    requests: list[ScoreRequest] = []
    for task in chosen:
        for skill in default_skills()[:NUM_SKILLS]:
            examples = [found.task for found in memory.recall(task, skill.recall)]
            user = user_text(task, skill, examples)
            job = Job(user, (task.id, skill.name))
            (trace,) = run_stages(llm, skill, [job], sampling=Sampling())
            requests += score_requests(llm, user, skill, trace.text, task.candidates)
    return requests


clock = time.perf_counter


def seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    gc.collect()
    start = clock()
    result = run()
    return clock() - start, result


@torch.inference_mode()
def dense_prefill_rate(llm: LocalLLM, length: int) -> float:
    """Tokens per second of one unpadded causal forward, with logits at the last token only."""
    tokens = torch.randint(100, 40000, (1, length))
    took, _ = seconds(lambda: llm._model(tokens, use_cache=False, logits_to_keep=1))
    return length / took


def lm_eval_scorer(llm: LocalLLM, batch_size: int) -> Callable[[list[ScoreRequest]], list[float]]:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    # Its decorators hide the signature from type checkers.
    backend: Any = HFLM
    peer = backend(
        pretrained=llm._model, tokenizer=llm._tokenizer, batch_size=batch_size, device="cpu"
    )

    def score(requests: list[ScoreRequest]) -> list[float]:
        instances = [
            Instance("loglikelihood", {}, (r.context, r.continuation), i)
            for i, r in enumerate(requests)
        ]
        return [value for value, _ in peer.loglikelihood(instances, disable_tqdm=True)]

    return score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, help="default: torch's own choice")
    parser.add_argument(
        "--cpu-time", action="store_true", help="for a busy machine; wants --threads 1"
    )
    options = parser.parse_args()
    if options.cpu_time:
        global clock
        clock = time.process_time
    if options.threads:
        torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)

    llm = LocalLLM(device="cpu")
    requests = make_requests(llm, options.tasks)
    encoded = llm.encode_requests(requests)
    sequences = [tokens[:-1] for tokens, _ in encoded]
    plain = sum(len(tokens) for tokens, _ in encoded)
    unique = len(pack(sequences))
    groups = partition(sequences)
    evaluated = sum(len(pack([sequences[i] for i in group])) for group in groups)

    few = requests[: 4 * NUM_SKILLS]
    tried: dict[int, float] = {}
    for size in (1, 4, 8, 16):
        trial = lm_eval_scorer(llm, size)
        tried[size], _ = seconds(lambda trial=trial: trial(few))
    best_size = min(tried, key=tried.__getitem__)
    peer = lm_eval_scorer(llm, best_size)

    ours_s, prefill, ours = float("inf"), 0.0, []
    llm.log_likelihood(few)
    # Alternating, so that whatever else the machine does falls on all alike; best of each.
    peer_s, theirs = seconds(lambda: peer(requests))
    for _ in range(options.repeats):
        took, ours = seconds(lambda: llm.log_likelihood(requests))
        ours_s = min(ours_s, took)
        prefill = max(prefill, *(dense_prefill_rate(llm, n) for n in (256, 512, 1024)))
        if options.repeats > 1:
            peer_s = min(peer_s, seconds(lambda: peer(requests))[0])

    difference = max(abs(a.log_likelihood - b) for a, b in zip(ours, theirs, strict=True))
    table = Table(title=f"{len(requests)} requests, {torch.get_num_threads()} threads")
    for column in ("", "seconds", "requests/s", "tokens", "tokens/s"):
        table.add_column(column, justify="left" if not column else "right")
    for name, took, tokens in (
        (f"lm-eval, batch {best_size}", peer_s, plain),
        ("bayesmeta, distinct prefixes", ours_s, unique),
        ("bayesmeta, tokens evaluated", ours_s, evaluated),
    ):
        rate, speed = f"{len(requests) / took:.1f}", f"{tokens / took:.0f}"
        table.add_row(name, f"{took:.2f}", rate, str(tokens), speed)
    table.add_row("dense prefill", "", "", "", f"{prefill:.0f}")
    Console().print(table)
    print("lm-eval on the first task, seconds by batch size:", tried)
    result = {
        "ratio_lm_eval": round(peer_s / ours_s, 2),
        "max_abs_diff": float(f"{difference:.2g}"),
        "prefill_fraction": round(unique / ours_s / prefill, 3),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
