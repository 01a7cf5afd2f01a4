"""Slow, obvious twin of the Bradley-Terry model: a loop over comparisons."""

import math

from scipy import stats


def log_joint(data, scales, sites, item_contrast, judge_contrast):
    """Log density of sites and winners. ``scales``: sd of every site's normal prior."""
    total = 0.0
    for name, value in sites.items():
        total += float(stats.norm.logpdf(value, 0, scales[name]).sum())
    rewards = item_contrast @ sites["u"]
    for c in range(len(data.winner)):
        j = int(data.judge[c])
        gap = rewards[int(data.item_1[c])] - rewards[int(data.item_2[c])]
        for p in range(data.x.shape[1]):
            gap += float(data.x[c, p]) * sites["zeta"][p]
        if data.num_judges > 1:
            gap *= math.exp(float(judge_contrast[j] @ sites["log_a"]))
        if data.has_order:
            gap += sites["g"][j] * float(data.order[c])
        weight = {1: math.exp(gap / 2), 2: math.exp(-gap / 2)}
        weight[0] = math.exp(sites["log_nu"][j]) if data.has_ties else 0.0
        total += math.log(weight[int(data.winner[c])] / sum(weight.values()))
    return total
