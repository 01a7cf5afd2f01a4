"""Tables of comparisons drawn from the Bradley-Terry model, for tests."""

import numpy as np
import pandas as pd


def simulate_preferences(
    rng, num_items=8, num_pairs=400, num_judges=2, position=0.0, tie=0.3, length=0.0
):
    """A table and the true rewards of its items, which are named item0, item1, ..."""
    R = rng.normal(0, 1, num_items)
    R -= R.mean()
    a = np.exp(np.linspace(-0.5, 0.5, num_judges)) if num_judges > 1 else np.ones(1)
    rows = []
    for _ in range(num_pairs):
        one, two = rng.choice(num_items, 2, replace=False)
        judge, first = rng.integers(num_judges), rng.integers(1, 3)
        lengths = np.exp(rng.normal(4, 1, 2))
        gap = a[judge] * (R[one] - R[two] + length * np.log(lengths[0] / lengths[1]))
        gap += position if first == 1 else -position
        weight = np.array([tie, np.exp(gap / 2), np.exp(-gap / 2)])
        winner = rng.choice(3, p=weight / weight.sum())
        rows.append([f"item{one}", f"item{two}", winner, f"judge{judge}", first, *lengths])
    columns = ["item_1", "item_2", "winner", "judge", "first", "length_1", "length_2"]
    return pd.DataFrame(rows, columns=columns), R
