"""Is what was known still true? Change points in a stream of counts, in closed form.

Between changes the chances of K outcomes are constant; with probability ``hazard`` an episode
starts afresh from the prior. Both questions are answered exactly, as Dirichlet and multinomial are
conjugate: whether the newest episode still follows what is known (math.md 5.2), and when the last
change was (Adams & MacKay 2007, arXiv 0710.3742).
"""

import numpy as np
from jaxtyping import Float
from scipy.special import gammaln, logsumexp


def log_marginal(
    counts: Float[np.ndarray, "*batch outcome"], concentration: Float[np.ndarray, "*batch outcome"]
) -> Float[np.ndarray, "*batch"]:
    """log p(one sequence with these counts) under Dirichlet(concentration) chances, nats."""
    counts, a = np.asarray(counts, np.float64), np.asarray(concentration, np.float64)
    total = gammaln(a.sum(-1)) - gammaln((a + counts).sum(-1))
    return total + (gammaln(a + counts) - gammaln(a)).sum(-1)


def probability_outdated(
    counts: Float[np.ndarray, " outcome"],
    known: Float[np.ndarray, " outcome"],
    prior: Float[np.ndarray, " outcome"],
    hazard: float,
) -> float:
    """P(what was known no longer holds | the newest counts).

    h p(D | p_0) / (h p(D | p_0) + (1 - h) p(D | q)), math.md 5.2.

    Args:
      counts: of the newest episode.
      known: Dirichlet concentration of what was believed before it.
      prior: of what a fresh start believes.
      hazard: probability of a change in any one episode.
    """
    _check(hazard)
    fresh = np.log(hazard) + log_marginal(counts, prior)
    same = np.log1p(-hazard) + log_marginal(counts, known)
    return float(np.exp(fresh - np.logaddexp(fresh, same)))


def run_lengths(
    counts: Float[np.ndarray, "episode outcome"],
    prior: Float[np.ndarray, " outcome"],
    hazard: float,
) -> Float[np.ndarray, "episode run"]:
    """P(the last change was r episodes before episode t | episodes up to t), [t, r].

    A run of 0 began in the episode itself; the first episode always begins one.
    """
    _check(hazard)
    counts, prior = np.asarray(counts, np.float64), np.asarray(prior, np.float64)
    num_episodes = len(counts)
    found = np.zeros((num_episodes, num_episodes))
    # Row r: what a run of r + 1 episodes has seen; its log joint with all episodes so far.
    seen, log_joint = np.zeros((0, counts.shape[1])), np.zeros(0)
    for t, new in enumerate(counts):
        start = np.log(hazard) + logsumexp(log_joint) if t else 0.0
        seen = np.vstack([np.zeros_like(new)[None], seen])
        log_joint = np.concatenate([[start], np.log1p(-hazard) + log_joint])
        log_joint = log_joint + log_marginal(new, prior + seen)
        seen = seen + new
        found[t, : t + 1] = np.exp(log_joint - logsumexp(log_joint))
    return found


def _check(hazard: float) -> None:
    if not 0 < hazard < 1:
        raise ValueError(f"hazard is {hazard}, wanted a probability such as 0.1 between 0 and 1.")
