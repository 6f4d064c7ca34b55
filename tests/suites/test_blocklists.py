import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynbench.suites.blocklists import (
    list_facts,
    list_problem,
    next_query_facts,
    shape_problem,
)
from dynbench.suites.rows import cut
from dynnsiha.attention import NSAConfig, native_sparse_attention

SEQ_LEN = 100
EXACT = NSAConfig(8, 8, 8, top_n=6, window=12)
HYBRID = NSAConfig(8, 8, 8, top_n=6, window=12, query_tile=4, private_blocks=2)
NO_WINDOW = NSAConfig(8, 8, 8, top_n=6, window=12, branches=("compressed", "selected"))


def chosen(config, seq_len=SEQ_LEN, q_heads=2, kv_heads=1):
    torch.manual_seed(1)
    q = torch.randn(1, seq_len, q_heads, 4, dtype=torch.float64)
    k, v = (torch.randn(1, seq_len, kv_heads, 4, dtype=torch.float64) for _ in "kv")
    gates = torch.rand(1, seq_len, q_heads, 3, dtype=torch.float64)
    _, aux = native_sparse_attention(q, k, v, gates, config, return_aux=True, backend="reference")
    return (q, k, v, gates, config), aux.block_indices


def problem(operands, lists, head=0):
    rows = torch.arange(operands[0].shape[1])
    return list_problem(cut(*operands, lists, 0, head), rows)


@settings(max_examples=40)
@given(
    seq_len=st.integers(1, 120),
    tile=st.sampled_from([1, 2, 8]),
    private=st.integers(0, 3),
    free=st.integers(0, 5),
    paper=st.booleans(),
)
def test_lists_of_the_reference_are_in_order(seq_len, tile, private, free, paper):
    windows = (4, 2) if paper else (8, 8)
    config = NSAConfig(
        8, *windows, top_n=3 + private + free, query_tile=tile, private_blocks=private, window=9
    )
    operands, lists = chosen(config, seq_len, 4, 2)
    assert shape_problem(lists, config, 1, seq_len, 2) == ""
    assert problem(operands, lists, head=1) == ""


def replaced(lists, row, slot, value):
    lists = lists.clone()
    lists[0, row, 0, slot] = value
    return lists


@pytest.mark.parametrize(
    ("slot", "value", "message"),
    [
        (5, 12, "names a future block"),
        (5, 99, "names a future block or none that exists"),
        (5, -2, "names a future block or none that exists"),
        (5, 0, "names a block twice"),
        (0, 4, "lacks a forced block"),  # block 0 is the initial one
        (5, -1, "has 5 blocks, not top_n"),
    ],
)
def test_broken_exact_lists_are_named(slot, value, message):
    operands, lists = chosen(EXACT)
    lists = torch.cat([lists[..., :3], lists[..., 3:].sort(-1).values], -1)
    if message == "lacks a forced block":
        free = set(range(11)) - set(lists[0, 90, 0].tolist())
        value = min(free)
    found = problem(operands, replaced(lists, 90, slot, value))
    assert message in found
    assert "query 90" in found


def test_worse_blocks_than_the_best_are_named():
    operands, lists = chosen(EXACT)
    free = sorted(set(range(1, 10)) - set(lists[0, 90, 0].tolist()))
    found = {problem(operands, replaced(lists, 90, 3, block)) for block in free}
    assert found == {"list of query 90: its blocks are not the best ones by importance"}


def test_a_worse_private_block_and_a_shared_one_of_another_query_are_named():
    operands, (shared, private) = chosen(HYBRID)
    listed = set(shared[0, 22, 0].tolist()) | set(private[0, 90, 0].tolist())
    worse = min(set(range(1, 10)) - listed)
    assert "private blocks are not the best of the rest" in problem(
        operands, (shared, replaced(private, 90, 0, worse))
    )
    assert "not the best ones by importance" in problem(
        operands, (replaced(shared, 22, 3, worse), private)
    )


@pytest.mark.parametrize(
    "lists", [None, "x", torch.zeros(1, 2, 1, 6), torch.zeros(1, 99, 1, 6).int()]
)
def test_what_is_no_list_is_refused(lists):
    assert shape_problem(lists, EXACT, 1, SEQ_LEN, 1).startswith("lists: ")
    assert "must be a pair" in shape_problem(lists, HYBRID, 1, SEQ_LEN, 1)


def facts_by_hand(per_query, config, seq_len):
    """Sets of keys and blocks, one query of one head at a time."""
    attended = blocks = kept = 0
    chosen_free, listed_later = {}, 0
    for head, queries in enumerate(per_query):
        for t, listed in enumerate(queries):
            own, bs = t // config.block_size, config.block_size
            keys = {key for b in listed for key in range(b * bs, min((b + 1) * bs, t + 1))}
            if "sliding" in config.branches:
                keys |= set(range(max(0, t - config.window + 1), t + 1))
            attended += len(keys)
            blocks += len(listed)
            if t:
                kept += len(listed & queries[t - 1])
                listed_later += len(listed)
            for block in listed:
                if config.init_blocks <= block <= own - config.local_blocks:
                    chosen_free[head, block] = chosen_free.get((head, block), 0) + 1
    heads = len(per_query)
    share = attended / (heads * seq_len * (seq_len + 1) / 2)
    return {
        "attended_share": share,
        "sparsity": 1 - share,
        "mean_blocks": blocks / (heads * seq_len),
        "list_overlap": kept / listed_later if listed_later else None,
        "hottest_block_share": max(chosen_free.values()) / seq_len if chosen_free else None,
    }


@pytest.mark.parametrize("config", [EXACT, HYBRID, NO_WINDOW])
@pytest.mark.parametrize("seq_len", [1, 8, 37, 101])
def test_facts_equal_a_count_with_sets(config, seq_len):
    _, lists = chosen(config, seq_len, 4, 2)
    per_query = []
    for head in range(2):
        queries = []
        for t in range(seq_len):
            if config.query_tile == 1:
                listed = lists[0, t, head].tolist()
            else:
                listed = lists[0][0, t // 4, head].tolist() + lists[1][0, t, head].tolist()
            queries.append({b for b in listed if b >= 0})
        per_query.append(queries)
    assert list_facts(lists, config, seq_len) == pytest.approx(
        facts_by_hand(per_query, config, seq_len)
    )


def test_facts_of_long_lists_are_counted_in_small_chunks(monkeypatch):
    """The same facts, while comparing neighbours' lists never takes more than the limit."""
    _, lists = chosen(HYBRID)
    expected = list_facts(lists, HYBRID, SEQ_LEN)
    monkeypatch.setattr("dynbench.suites.blocklists._CHUNK_ELEMENTS", 100)
    assert list_facts(lists, HYBRID, SEQ_LEN) == pytest.approx(expected)


@pytest.mark.parametrize("config", [EXACT, NO_WINDOW])
@pytest.mark.parametrize("before", [0, 7, 8, 100])
def test_facts_of_the_next_query_are_its_part_of_all(config, before):
    """The pairs of all queries are those of the earlier ones and its own."""
    lists = chosen(config, before + 1)[1]
    found = next_query_facts(lists[:, before:], config, before)
    whole = list_facts(lists, config, before + 1)
    earlier = list_facts(lists[:, :before], config, before) if before else {"attended_share": 0.0}
    pairs = [
        facts["attended_share"] * length * (length + 1) / 2
        for facts, length in ((whole, before + 1), (earlier, before))
    ]
    assert found["attended_share"] * (before + 1) == pytest.approx(pairs[0] - pairs[1])
    assert found["sparsity"] == 1 - found["attended_share"]
    assert found["mean_blocks"] == min(6, before // 8 + 1)
