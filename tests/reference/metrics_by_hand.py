"""Slow obvious twins of bayesmeta.metrics and bayesmeta.baselines: loops, no cleverness."""

import math


def log_score(table, gold):
    return sum(math.log(row[g]) for row, g in zip(table, gold, strict=True)) / len(gold)


def accuracy(table, gold):
    total = 0.0
    for row, g in zip(table, gold, strict=True):
        winners = [c for c, p in enumerate(row) if p == max(row)]
        total += (g in winners) / len(winners)
    return total / len(gold)


def brier(table, gold):
    total = 0.0
    for row, g in zip(table, gold, strict=True):
        total += sum((p - (c == g)) ** 2 for c, p in enumerate(row))
    return total / len(gold)


def equal_mass_error(confidence, hit, num_bins):
    """Expected calibration error; the first N mod B bins hold one task more."""
    pairs = sorted(zip(confidence, hit, strict=True), key=lambda pair: pair[0])
    size, extra = divmod(len(pairs), num_bins)
    total, start = 0.0, 0
    for b in range(num_bins):
        members = pairs[start : start + size + (b < extra)]
        start += len(members)
        mean_confidence = sum(c for c, _ in members) / len(members)
        frequency = sum(h for _, h in members) / len(members)
        total += len(members) / len(pairs) * abs(mean_confidence - frequency)
    return total


def standard_error(values):
    mean = sum(values) / len(values)
    variance = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
    return math.sqrt(variance / len(values))


def em_stacking(likelihood, num_iterations):
    """Plain EM for max_w sum_n log sum_k w_k likelihood[n][k]."""
    num_skills = len(likelihood[0])
    weights = [1 / num_skills] * num_skills
    for _ in range(num_iterations):
        counts = [0.0] * num_skills
        for row in likelihood:
            total = sum(w * p for w, p in zip(weights, row, strict=True))
            for k in range(num_skills):
                counts[k] += weights[k] * row[k] / total
        weights = [count / len(likelihood) for count in counts]
    return weights
