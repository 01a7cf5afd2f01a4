import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bayesmeta.llm.trie import PackedTrie, common_prefix, pack, partition

#: Few distinct tokens, so that prefixes are shared often.
SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=12)


def ancestors(trie: PackedTrie, sequences: list[list[int]]) -> np.ndarray:
    """The mask from its definition: a node sees exactly the nodes on its sequences' paths."""
    mask = np.zeros((len(trie), len(trie)), bool)
    for path in trie.paths:
        for i, node in enumerate(path):
            mask[node, path[: i + 1]] = True
    return mask


@settings(deadline=None)
@given(SEQUENCES)
def test_every_distinct_prefix_is_one_node(sequences):
    trie = pack(sequences)
    prefixes = {tuple(s[:n]) for s in sequences for n in range(1, len(s) + 1)}
    assert len(trie) == len(prefixes)
    for sequence, path in zip(sequences, trie.paths, strict=True):
        assert trie.tokens[path].tolist() == sequence
        assert trie.depth[path].tolist() == list(range(len(sequence)))


@settings(deadline=None)
@given(SEQUENCES)
def test_mask_shows_each_node_its_ancestors_and_itself(sequences):
    trie = pack(sequences)
    np.testing.assert_array_equal(trie.attention_mask(), ancestors(trie, sequences))


@settings(deadline=None)
@given(SEQUENCES)
def test_a_chain_is_recognised(sequences):
    trie = pack(sequences)
    causal = np.tril(np.ones((len(trie), len(trie)), bool))
    assert trie.is_chain == (trie.attention_mask() == causal).all()


def test_empty():
    assert len(pack([])) == 0
    assert partition([]) == []
    assert common_prefix((), (1,)) == 0


def group_cost(sequences, group, scale, overhead):
    nodes = len(pack([sequences[i] for i in group]))
    return overhead + nodes + nodes**2 / scale


@settings(deadline=None)
@given(SEQUENCES, st.sampled_from([4.0, 20.0, 1000.0]), st.sampled_from([0.5, 3.0]))
def test_partition_is_the_cheapest_contiguous_one(sequences, scale, overhead):
    sequences = sequences[:7]
    settings = {"attention_scale": scale, "overhead": overhead}
    groups = partition(sequences, max_nodes=1000, **settings)
    assert sorted(itertools.chain(*groups)) == list(range(len(sequences)))
    cost = sum(group_cost(sequences, group, scale, overhead) for group in groups)
    order = sorted(range(len(sequences)), key=sequences.__getitem__)
    cuts = itertools.chain.from_iterable(
        itertools.combinations(range(1, len(order)), size) for size in range(len(order))
    )
    cheapest = min(
        sum(
            group_cost(sequences, order[a:b], scale, overhead)
            for a, b in itertools.pairwise((0, *cut, len(order)))
        )
        for cut in cuts
    )
    assert cost == pytest.approx(cheapest)


@settings(deadline=None)
@given(SEQUENCES, st.integers(1, 10))
def test_groups_stay_within_the_limit_unless_one_sequence_does_not(sequences, limit):
    for group in partition(sequences, max_nodes=limit):
        distinct = {tuple(sequences[i]) for i in group}
        assert len(pack([sequences[i] for i in group])) <= limit or len(distinct) == 1


def test_a_task_with_skills_and_candidates_becomes_one_small_trie():
    question = list(range(100, 200))
    requests = [
        question + [skill] * 30 + [7, candidate] for skill in range(6) for candidate in range(4)
    ]
    (group,) = partition(requests)
    assert len(group) == 24
    assert len(pack(requests)) == 100 + 6 * (31 + 4)
