"""Blocks, prefixes, buckets and the scheduler, without a model: plans are carried out by hand."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ziggurat.serve.llm.blocks import BlockAllocator
from ziggurat.serve.llm.buckets import Buckets
from ziggurat.serve.llm.lane import Lane
from ziggurat.serve.llm.pages import Pages
from ziggurat.serve.llm.prefix_cache import HashedPrefixes, NoPrefixes
from ziggurat.serve.llm.scheduler import Limits, Scheduler

SIZE = 4


def scheduler(blocks=16, width=8, cache=True, running=4, budget=16, chunk=8):
    prefixes = HashedPrefixes(SIZE) if cache else NoPrefixes()
    limits = Limits(running, budget, chunk)
    return Scheduler(limits, Pages(blocks, SIZE, width, prefixes))


def lane(order, length, start=0):
    return Lane((order, 0), list(range(start, start + length)))


def carry_out(made):
    """Do what the plan says; lanes that have read all get a token. The plan."""
    plan = made.plan()
    for one, count in [*((x, 1) for x in plan.decode), *((c.lane, c.count) for c in plan.prefill)]:
        assert one.slot is not None
        assert one.cached + count <= len(one.blocks) * SIZE, "no block for a token"
        made.pages.advance(one, count)
        if one.pending == 0:
            one.tokens.append(1000 + len(one.tokens))
    return plan


def shares(plan):
    return [x.order[0] for x in plan.decode], [(c.lane.order[0], c.count) for c in plan.prefill]


def test_prompts_are_read_in_chunks_beside_those_who_decode():
    made = scheduler(budget=10)
    for order, length in enumerate((3, 20, 6)):
        made.add(lane(order, length, 100 * order))
    assert shares(carry_out(made)) == ([], [(0, 3), (1, 7)])
    assert shares(carry_out(made)) == ([0], [(1, 8), (2, 1)])
    assert shares(carry_out(made)) == ([0], [(1, 5), (2, 4)])
    assert shares(carry_out(made)) == ([0, 1, 2], [])


def test_no_more_run_than_may_and_none_overtakes():
    made = scheduler(running=2)
    lanes = [lane(order, 3) for order in range(3)]
    for one in reversed(lanes):
        made.add(one)
    assert shares(carry_out(made))[1] == [(0, 3), (1, 3)]
    made.remove(lanes[0])
    assert shares(carry_out(made)) == ([1], [(2, 3)])


def test_the_newest_gives_way_and_comes_back_with_all_its_tokens():
    made = scheduler(blocks=8, cache=False, budget=32, chunk=32)
    first, second = lane(0, 15), lane(1, 9, 50)
    made.add(first)
    made.add(second)
    carry_out(made)
    assert (len(first.blocks), len(second.blocks)) == (4, 3)
    while made.preemptions == 0:
        carry_out(made)
    assert made.running == [first]
    assert made.waiting == [second]
    assert (second.cached, second.blocks) == (0, [])
    count = len(second.tokens)
    assert count > 10
    made.remove(first)
    assert shares(carry_out(made)) == ([], [(1, count)])


def test_a_lane_with_no_newer_one_gives_way_itself():
    made = scheduler(blocks=8, cache=False, budget=32, chunk=32)
    for order in (0, 1):
        made.add(lane(order, 16, 50 * order))
    plans = [shares(carry_out(made)) for _ in range(3)]
    assert plans == [([], [(0, 16)]), ([0], []), ([0], [])], "16 + 1 spare did not fit at once"


def test_a_prefix_is_found_until_its_blocks_are_needed():
    made = scheduler(blocks=8, budget=64, chunk=64)
    first = lane(0, 18)
    made.add(first)
    carry_out(made)
    made.remove(first)
    assert made.pages.allocator.free == 8
    again = lane(1, 18)
    made.add(again)
    assert shares(carry_out(made))[1] == [(1, 2)]
    assert (made.pages.queries, made.pages.hits) == (36, 16)
    made.remove(again)
    other = lane(2, 25, 500)  # 7 blocks: all but one of those kept are overwritten
    made.add(other)
    carry_out(made)
    made.remove(other)
    third = lane(3, 18)
    made.add(third)
    assert shares(carry_out(made))[1] == [(3, 14)], "the beginning is what is kept longest"


def test_the_last_token_is_always_read():
    made = scheduler(budget=64, chunk=64)
    for order in (0, 1):
        made.add(lane(order, 16))
        carry_out(made)
    assert made.pages.hits == 12


def test_forks_share_the_full_blocks_of_their_prompt():
    made = scheduler(cache=False, budget=64, chunk=64)
    parent = lane(0, 10)
    made.add(parent)
    carry_out(made)
    forks = [Lane((0, n), list(range(10))) for n in (1, 2)]
    made.fork(parent, forks, 10)
    held = parent.blocks[:2]
    assert [made.pages.allocator.references(b) for b in parent.blocks] == [3, 3, 1]
    assert shares(carry_out(made)) == ([0], [(0, 2), (0, 2)])
    for one in (parent, *forks):
        assert one.blocks[:2] == held
        made.remove(one)
    assert made.pages.allocator.free == 16


def test_waiting_forks_let_go_of_shared_blocks_when_others_need_them():
    made = scheduler(blocks=8, width=8, cache=False, running=1, budget=64, chunk=64)
    parent = lane(0, 17)
    made.add(parent)
    carry_out(made)
    fork = Lane((0, 1), list(range(17)))
    made.fork(parent, [fork], 17)
    made.remove(parent)
    old = Lane((-1, 0), list(range(200, 228)))  # came earlier, e.g. lost its blocks before
    made.add(old)
    assert [c.lane for c in carry_out(made).prefill] == [old]
    assert (fork.cached, fork.blocks) == (0, [])


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
            new = lane(order, rng.randint(1, 32 - extra), rng.choice([0, 7]))
            alive.append((new, len(new.tokens) + extra))
            made.add(new)
        carry_out(made)
        for one, end in list(alive):
            if len(one.tokens) >= end or rng.random() < 0.03:
                alive.remove((one, end))
                made.remove(one)
        held = [block for one, _ in alive for block in set(one.blocks)]
        allocator = made.pages.allocator
        assert len(set(held)) + allocator.free == allocator.total
        assert all(allocator.references(b) == held.count(b) for b in set(held))
    assert made.pages.allocator.free == blocks
    assert len(made._slots) == 3


def test_blocks_without_content_worth_keeping_are_taken_first():
    class Keeper:
        kept = {2, 3}

        def keeps(self, block):
            return block in self.kept

        def forget(self, block):
            self.kept.discard(block)

    keeper = Keeper()
    blocks = BlockAllocator(4, keeper)
    held = blocks.take(4)
    assert keeper.kept == set()
    keeper.kept = {held[0], held[1]}
    blocks.give_back(held)
    assert blocks.take(4) == [held[2], held[3], held[1], held[0]]


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
