"""Token tries: evaluate every distinct prefix of many sequences exactly once.

All prompts of a task share its question, and all candidates of a skill share the prompt. Laid
out as a trie in depth-first order, the whole set becomes one sequence for the model: a token
attends to its ancestors only, and its position is its depth. Depth-first order makes the mask
cheap to say, because the descendants of token ``i`` are the tokens ``i + 1 .. end[i] - 1``.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class PackedTrie:
    """A forest of token sequences in depth-first order.

    Attributes:
      tokens: token id of each node.
      depth: number of ancestors of each node, which is its position id.
      end: one past the last descendant of each node.
      paths: for each packed sequence, the node of each of its tokens.
    """

    tokens: Int[np.ndarray, " nodes"]
    depth: Int[np.ndarray, " nodes"]
    end: Int[np.ndarray, " nodes"]
    paths: list[Int[np.ndarray, " length"]]

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def is_chain(self) -> bool:
        """Whether no node has two children, so that a causal mask says everything."""
        return len(self) == 0 or int(self.depth[-1]) == len(self) - 1

    def attention_mask(self) -> Bool[np.ndarray, "nodes nodes"]:
        """``mask[query, key]``: whether ``key`` is ``query`` or one of its ancestors."""
        node = np.arange(len(self))
        return (node[None, :] <= node[:, None]) & (node[:, None] < self.end[None, :])


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Number of leading tokens that two sequences share."""
    limit = min(len(left), len(right))
    if left[:limit] == right[:limit]:
        return limit
    return next(i for i in range(limit) if left[i] != right[i])


def pack(sequences: Sequence[Sequence[int]]) -> PackedTrie:
    """The trie of ``sequences``. Equal sequences share all their nodes."""
    tokens: list[int] = []
    depth: list[int] = []
    end: list[int] = []
    paths: list[np.ndarray] = [np.empty(0, np.int64)] * len(sequences)
    path: list[int] = []
    previous: Sequence[int] = ()
    # In sorted order, the longest prefix that a sequence shares with any earlier one is the one
    # that it shares with its predecessor.
    for index in sorted(range(len(sequences)), key=lambda i: tuple(sequences[i])):
        sequence = tuple(sequences[index])
        shared = common_prefix(previous, sequence)
        for node in path[shared:]:
            end[node] = len(tokens)
        del path[shared:]
        path.extend(range(len(tokens), len(tokens) + len(sequence) - shared))
        tokens.extend(sequence[shared:])
        depth.extend(range(shared, len(sequence)))
        end.extend([0] * (len(sequence) - shared))
        paths[index] = np.array(path, np.int64)
        previous = sequence
    for node in path:
        end[node] = len(tokens)
    return PackedTrie(
        np.array(tokens, np.int64), np.array(depth, np.int64), np.array(end, np.int64), paths
    )


def partition(
    sequences: Sequence[Sequence[int]],
    *,
    max_nodes: int = 1024,
    attention_scale: float = 1500.0,
    overhead: float = 48.0,
) -> list[list[int]]:
    """Split sequences into groups, each to be packed as one trie, at the least total cost.

    One trie for everything would evaluate the fewest tokens, but attention costs the square of
    a trie's nodes. A trie of ``t`` nodes is taken to cost ``overhead + t + t**2 /
    attention_scale``, in units of one token through the dense layers; the defaults were measured
    with a model of 135M parameters on the CPU and are otherwise arbitrary. Over groups that
    are contiguous in sorted order, dynamic programming finds the minimum exactly.

    Args:
      sequences: token sequences; none may be empty.
      max_nodes: the most nodes of a group, unless one sequence alone has more.
      attention_scale: nodes at which attention costs as much as the dense layers.
      overhead: fixed cost of a group, in tokens.

    Returns:
      The groups, as indices into ``sequences``.
    """
    keys = [tuple(sequence) for sequence in sequences]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    if not order:
        return []
    length = np.array([len(keys[i]) for i in order], np.int64)
    shared = [common_prefix(keys[a], keys[b]) for a, b in zip(order, order[1:], strict=False)]
    added = np.cumsum(length - np.array([0, *shared], np.int64))
    # best[j]: least cost of the first j sequences; start[j]: where its last group begins.
    best = np.zeros(len(order) + 1)
    start = np.zeros(len(order) + 1, np.int64)
    low = 0
    for j in range(1, len(order) + 1):
        while low < j - 1 and length[low] + added[j - 1] - added[low] > max_nodes:
            low += 1
        nodes = length[low:j] + added[j - 1] - added[low:j]
        fits = nodes <= max_nodes
        fits[-1] = True
        cost = best[low:j] + overhead + nodes + nodes.astype(float) ** 2 / attention_scale
        first = int(np.argmin(np.where(fits, cost, np.inf)))
        best[j], start[j] = cost[first], low + first
    groups: list[list[int]] = []
    stop = len(order)
    while stop > 0:
        groups.append(order[start[stop] : stop])
        stop = int(start[stop])
    return groups[::-1]
