"""A small run of observe that writes down all it asks of the model and takes its time."""

import json
import sys
import time
from pathlib import Path

if __name__ == "__main__":  # run as a program, to be killed
    sys.path[0] = str(Path(__file__).parents[1])

from reference.character_llm import CharacterLLM

from bayesmeta.evidence import save
from bayesmeta.observation import observe
from bayesmeta.skills import Skill, Stage
from bayesmeta.tasks import Task


class LoggedLLM(CharacterLLM):
    """Logs a request only when it has been answered, then waits ``pause`` seconds."""

    def __init__(self, log: Path, pause: float) -> None:
        super().__init__()
        self.log, self.pause = log, pause

    def _note(self, rows):
        with self.log.open("a") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))
        time.sleep(self.pause)

    def log_likelihood(self, requests):
        scores = super().log_likelihood(requests)
        self._note([["score", r.context, r.continuation] for r in requests])
        return scores

    def sample(self, prompts, *, seeds, **settings):
        traces = super().sample(prompts, seeds=seeds, **settings)
        self._note([["sample", p, s] for p, s in zip(prompts, seeds, strict=True)])
        return traces


def main(folder: Path, log: Path, pause: float) -> None:
    """Observe 10 tasks in batches of 2, caching in ``folder``, and save the evidence there."""
    tasks = [Task(f"t{i}", f"What is {i}?", str(i), (str(i), "no")) for i in range(10)]
    think = Skill("think", "Think.", stages=(Stage("Hm", 6), Stage("so", 4)))
    skills = (Skill("direct", "Say."), think)
    evidence = observe(
        LoggedLLM(log, pause), tasks, skills, num_traces=2, cache=folder / "cache", batch_size=2
    )
    save(evidence, folder / "evidence.nc")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))
