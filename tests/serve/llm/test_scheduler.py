"""Blocks, prefixes, buckets and the scheduler, without a model: plans are carried out by hand."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ziggurat.serve.llm.block_allocator import BlockAllocator
from ziggurat.serve.llm.buckets import Buckets
from ziggurat.serve.llm.kv_cache_manager import KVCacheManager
from ziggurat.serve.llm.prefix_cache import HashedPrefixes, NoPrefixes
from ziggurat.serve.llm.scheduler import Limits, Scheduler
from ziggurat.serve.llm.sequence import Sequence

SIZE = 4


def scheduler(blocks=16, width=8, cache=True, running=4, budget=16, chunk=8):
    prefixes = HashedPrefixes(SIZE) if cache else NoPrefixes()
    limits = Limits(running, budget, chunk)
    return Scheduler(limits, KVCacheManager(blocks, SIZE, width, prefixes))


def seq(order, length, start=0):
    return Sequence((order, 0), list(range(start, start + length)))


def carry_out(made):
    """Do what the plan says; sequences that have read all get a token. The plan."""
    plan = made.plan()
    for one, count in [*((x, 1) for x in plan.decode), *((c.seq, c.count) for c in plan.prefill)]:
        assert one.slot is not None
        assert one.computed + count <= len(one.blocks) * SIZE, "no block for a token"
        made.kv_cache.advance(one, count)
        if one.pending == 0:
            one.tokens.append(1000 + len(one.tokens))
    return plan


def shares(plan):
    return [x.order[0] for x in plan.decode], [(c.seq.order[0], c.count) for c in plan.prefill]


def test_prompts_are_read_in_chunks_beside_those_who_decode():
    made = scheduler(budget=10)
    for order, length in enumerate((3, 20, 6)):
        made.add(seq(order, length, 100 * order))
    assert shares(carry_out(made)) == ([], [(0, 3), (1, 7)])
    assert shares(carry_out(made)) == ([0], [(1, 8), (2, 1)])
    assert shares(carry_out(made)) == ([0], [(1, 5), (2, 4)])
    assert shares(carry_out(made)) == ([0, 1, 2], [])


def test_no_more_run_than_may_and_none_overtakes():
    made = scheduler(running=2)
    seqs = [seq(order, 3) for order in range(3)]
    for one in reversed(seqs):
        made.add(one)
    assert shares(carry_out(made))[1] == [(0, 3), (1, 3)]
    made.remove(seqs[0])
    assert shares(carry_out(made)) == ([1], [(2, 3)])


def test_the_newest_gives_way_and_comes_back_with_all_its_tokens():
    made = scheduler(blocks=8, cache=False, budget=32, chunk=32)
    first, second = seq(0, 15), seq(1, 9, 50)
    made.add(first)
    made.add(second)
    carry_out(made)
    assert (len(first.blocks), len(second.blocks)) == (4, 3)
    while made.preemptions == 0:
        carry_out(made)
    assert made.running == [first]
    assert made.waiting == [second]
    assert (second.computed, second.blocks) == (0, [])
    count = len(second.tokens)
    assert count > 10
    made.remove(first)
    assert shares(carry_out(made)) == ([], [(1, count)])


def test_a_lane_with_no_newer_one_gives_way_itself():
    made = scheduler(blocks=8, cache=False, budget=32, chunk=32)
    for order in (0, 1):
        made.add(seq(order, 16, 50 * order))
    plans = [shares(carry_out(made)) for _ in range(3)]
    assert plans == [([], [(0, 16)]), ([0], []), ([0], [])], "16 + 1 spare did not fit at once"


def test_a_prefix_is_found_until_its_blocks_are_needed():
    made = scheduler(blocks=8, budget=64, chunk=64)
    first = seq(0, 18)
    made.add(first)
    carry_out(made)
    made.remove(first)
    assert made.kv_cache.allocator.free_blocks == 8
    again = seq(1, 18)
    made.add(again)
    assert shares(carry_out(made))[1] == [(1, 2)]
    assert (made.kv_cache.queries, made.kv_cache.hits) == (36, 16)
    made.remove(again)
    other = seq(2, 25, 500)  # 7 blocks: all but one of those kept are overwritten
    made.add(other)
    carry_out(made)
    made.remove(other)
    third = seq(3, 18)
    made.add(third)
    assert shares(carry_out(made))[1] == [(3, 14)], "the beginning is what is kept longest"


def test_the_last_token_is_always_read():
    made = scheduler(budget=64, chunk=64)
    for order in (0, 1):
        made.add(seq(order, 16))
        carry_out(made)
    assert made.kv_cache.hits == 12


def test_forks_share_the_full_blocks_of_their_prompt():
    made = scheduler(cache=False, budget=64, chunk=64)
    parent = seq(0, 10)
    made.add(parent)
    carry_out(made)
    forks = [Sequence((0, n), list(range(10))) for n in (1, 2)]
    made.fork(parent, forks, 10)
    held = parent.blocks[:2]
    assert [made.kv_cache.allocator.references(b) for b in parent.blocks] == [3, 3, 1]
    assert shares(carry_out(made)) == ([0], [(0, 2), (0, 2)])
    for one in (parent, *forks):
        assert one.blocks[:2] == held
        made.remove(one)
    assert made.kv_cache.allocator.free_blocks == 16


def test_waiting_forks_let_go_of_shared_blocks_when_others_need_them():
    made = scheduler(blocks=8, width=8, cache=False, running=1, budget=64, chunk=64)
    parent = seq(0, 17)
    made.add(parent)
    carry_out(made)
    fork = Sequence((0, 1), list(range(17)))
    made.fork(parent, [fork], 17)
    made.remove(parent)
    old = Sequence((-1, 0), list(range(200, 228)))  # came earlier, e.g. lost its blocks before
    made.add(old)
    assert [c.seq for c in carry_out(made).prefill] == [old]
    assert (fork.computed, fork.blocks) == (0, [])


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), cache=st.booleans(), blocks=st.integers(8, 20))
def test_random_traffic_ends_and_gives_all_blocks_back(seed, cache, blocks):
    rng = random.Random(seed)
    made = scheduler(blocks=blocks, cache=cache, running=3, budget=rng.randint(3, 20))
    left = {order: rng.randint(1, 12) for order in range(8)}
    alive = []
    steps = 0
    while left or alive:
        steps += 1
        assert steps < 2000, "no progress"
        if left and rng.random() < 0.5:
            order, extra = left.popitem()
            new = seq(order, rng.randint(1, 32 - extra), rng.choice([0, 7]))
            alive.append((new, len(new.tokens) + extra))
            made.add(new)
        carry_out(made)
        for one, end in list(alive):
            if len(one.tokens) >= end or rng.random() < 0.03:
                alive.remove((one, end))
                made.remove(one)
        held = [block for one, _ in alive for block in set(one.blocks)]
        allocator = made.kv_cache.allocator
        assert len(set(held)) + allocator.free_blocks == allocator.total
        assert all(allocator.references(b) == held.count(b) for b in set(held))
    assert made.kv_cache.allocator.free_blocks == blocks
    assert len(made._slots) == 3


def test_blocks_without_content_worth_keeping_are_taken_first():
    class CachedBlocks:
        kept = {2, 3}

        def is_cached(self, block):
            return block in self.kept

        def evict(self, block):
            self.kept.discard(block)

    keeper = CachedBlocks()
    blocks = BlockAllocator(4, keeper)
    held = blocks.allocate(4)
    assert keeper.kept == set()
    keeper.kept = {held[0], held[1]}
    blocks.free(held)
    assert blocks.allocate(4) == [held[2], held[3], held[1], held[0]]


@pytest.mark.parametrize("count", [1, 3, 16])
def test_every_chunk_has_a_shape_that_holds_it(count):
    table = Buckets(16, 512)
    rng = random.Random(count)
    counts = [rng.randint(1, 512) for _ in range(count)] + [rng.randint(1, 64)] * (count // 2)
    seen = []
    for shape, indexes in table.for_prefill(counts):
        assert shape in table.shapes
        assert len(indexes) <= shape.rows
        assert all(counts[i] <= shape.tokens for i in indexes)
        seen += indexes
    assert sorted(seen) == list(range(len(counts)))
    assert table.for_decode(count).rows >= count


def owned(client, order, length):
    return Sequence((order, 0), list(range(100 * order, 100 * order + length)), client=client)


def drain(made, tokens, steps=1000):
    """Run steps until every sequence has ``tokens`` tokens; clients in the order of their ends."""
    ended = []
    for _ in range(steps):
        if not made.running and not made.waiting:
            return ended
        carry_out(made)
        for one in list(made.running):
            if len(one.tokens) >= tokens[one.order[0]]:
                made.remove(one)
                ended.append(one.client)
    raise AssertionError("no progress")


@pytest.mark.parametrize("running", [1, 2, 4])
def test_a_deep_queue_of_one_client_keeps_no_other_waiting(running):
    made = scheduler(blocks=64, running=running, budget=16)
    for order in range(40):
        made.add(owned("deep", order, 5))
    carry_out(made)
    for order in (40, 41):
        made.add(owned("late", order, 5))
    ended = drain(made, dict.fromkeys(range(42), 9))
    places = [place for place, client in enumerate(ended) if client == "late"]
    # Those that run are not thrown out; then the clients take turns.
    assert places[0] <= running + 1
    assert places[1] <= running + 3


def test_of_one_client_the_first_come_is_the_first_served():
    made = scheduler(blocks=64, running=3, budget=16)
    for order in range(12):
        made.add(owned("ab"[order % 2], order, 4))
    begun = []
    while made.waiting or made.running:
        for chunk in carry_out(made).prefill:
            begun.append(chunk.seq)
            made.remove(chunk.seq)
    for client in "ab":
        orders = [one.order[0] for one in begun if one.client == client]
        assert orders == sorted(orders)


def test_long_prompts_of_one_client_share_the_steps_with_anothers():
    made = scheduler(blocks=64, width=16, running=8, budget=8, chunk=8)
    for order in range(4):
        made.add(owned("long", order, 60))
    carry_out(made)
    short = owned("short", 4, 6)
    made.add(short)
    steps = 0
    while short.pending > 1 or short.slot is None:
        carry_out(made)
        steps += 1
        assert steps <= 10, "it waits for all prompts of the other"


def test_who_has_begun_is_not_robbed_by_older_requests_of_another():
    """A sequence keeps its rank: one with a small share ends however many older ones wait."""
    made = scheduler(blocks=8, width=8, cache=False, running=4, budget=32, chunk=32)
    for order in range(30):
        made.add(owned("deep", order, 13))
    carry_out(made)
    made.add(owned("late", 30, 13))
    ended = drain(made, dict.fromkeys(range(31), 26))
    assert ended.index("late") <= 4
    assert made.kv_cache.allocator.free_blocks == 8


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), cache=st.booleans())
def test_random_traffic_of_several_clients_ends(seed, cache):
    rng = random.Random(seed)
    made = scheduler(blocks=10, cache=cache, running=3, budget=rng.randint(3, 20))
    ends = {}
    for order in range(20):
        length = rng.randint(1, 20)
        ends[order] = length + rng.randint(1, 12)
        made.add(owned(rng.choice("abc"), order, length))
        carry_out(made)
    drain(made, ends, steps=5000)
    assert made.kv_cache.allocator.free_blocks == 10


def test_prefixes_are_found_under_the_same_salt_only():
    made = scheduler(budget=64, chunk=64)
    for order, salt in enumerate((b"", b"x", b"x", b"y", b"")):
        before = made.kv_cache.hits
        one = Sequence((order, 0), list(range(18)), salt=salt)
        made.add(one)
        carry_out(made)
        made.remove(one)
        assert made.kv_cache.hits - before == (16 if order in (2, 4) else 0)
