"""Any number of hosts, changing at any step, makes the global batches that one host makes.

Random sequences of host counts over random data settings: every packing, with filter, duplicates,
a mixture with a schedule, caps and held-out documents. Each host works on its own unpickled copy,
as a process that has just started does, and only ever asks for its own rows.
"""

import itertools
import json
import pickle

import numpy as np
import pytest

from ziggurat.data.config import DataConfig
from ziggurat.data.deduplicate import Deduplicate
from ziggurat.data.filter import Filter
from ziggurat.data.mixture import Mixture, Stage
from ziggurat.data.opening import build
from ziggurat.data.packing import BestFit, Concat, FirstFit, Single
from ziggurat.data.sources import JsonLines
from ziggurat.data.tokenizers import byte_level

NAMES = ("web", "code", "books")
BATCH = 24
PACKINGS = (Concat(), FirstFit(window=16), BestFit(window=16), Single())


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    directory = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    for name, count in zip(NAMES, (120, 60, 25), strict=True):
        texts = [f"{name} {i % (count - 5)} " + "z" * (i % (count - 5)) for i in range(count)]
        order = rng.permutation(count)
        lines = [json.dumps({"text": texts[i]}) + "\n" for i in order]
        (directory / f"{name}.jsonl").write_text("".join(lines))
    return directory


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def drawn(rng, corpus, packing):
    """Random settings with filter, duplicates and, mostly, a mixture."""
    stages = [
        Stage(step=int(step), weights=dict(zip(NAMES, rng.random(3).tolist(), strict=True)))
        for step in sorted(rng.choice(np.arange(1, 20), 2, replace=False))
    ]
    mixture = Mixture(
        weights=dict(zip(NAMES, (rng.random(3) + 0.01).tolist(), strict=True)),
        temperature=float(rng.choice([1.0, 2.5])),
        epochs={"books": 2.5} if rng.random() < 0.5 else {},
        schedule=tuple(stages),
    )
    return DataConfig(
        sources=tuple(JsonLines(path=str(corpus / f"{n}.jsonl"), name=n) for n in NAMES),
        sequence_length=int(rng.choice([24, 64])),
        batch_size=BATCH,
        prefetch=0,  # threads would make batches that nobody asks for
        packing=packing,
        shuffle=bool(rng.random() < 0.8),
        eval_fraction=float(rng.choice([0.0, 0.1])),
        filter=Filter(min_tokens=int(rng.integers(8, 16)), max_tokens=int(rng.integers(60, 120))),
        dedup=Deduplicate() if rng.random() < 0.7 else None,
        mixture=mixture if rng.random() < 0.8 else None,
    )


def shares(rng, hosts):
    """Cut a batch into ranges of rows, equal ones where the number divides it."""
    if BATCH % hosts == 0:
        cuts = np.arange(0, BATCH + 1, BATCH // hosts)
    else:
        inner = rng.choice(np.arange(1, BATCH), hosts - 1, replace=False)
        cuts = [0, *sorted(inner.tolist()), BATCH]
    return [slice(int(first), int(stop)) for first, stop in itertools.pairwise(cuts)]


@pytest.mark.parametrize("packing", PACKINGS, ids=lambda packing: packing.kind)
def test_random_sequences_of_host_counts(corpus, cache, packing):
    for case in range(3):
        rng = np.random.default_rng([case, PACKINGS.index(packing)])
        settings = drawn(rng, corpus, packing)
        alone = build(settings, byte_level(), case, cache)
        expected = list(itertools.islice(alone.iterate(0), 10))
        frozen, state, step = pickle.dumps(alone), alone.state(0), 0
        while step < len(expected):
            # All hosts start anew, from the checkpoint that other hosts left.
            hosts = [pickle.loads(frozen) for _ in range(rng.integers(1, 9))]
            cuts = shares(rng, len(hosts))
            resumed = {host.check_state(json.loads(json.dumps(state))) for host in hosts}
            assert resumed == {step}
            until = min(len(expected), step + int(rng.integers(1, 8)))
            streams = [host.iterate(step, cut) for host, cut in zip(hosts, cuts, strict=True)]
            for at in range(step, until):
                parts = [next(stream) for stream in streams]
                for name, values in expected[at].items():
                    together = np.concatenate([part[name] for part in parts])
                    assert together.dtype == values.dtype
                    np.testing.assert_array_equal(together, values, err_msg=f"step {at} {name}")
            step = until
            state = hosts[0].state(step)
            for stream in streams:
                stream.close()
        if case % 2:
            check_documents(alone, settings, len(expected))


def check_documents(data, settings, steps):
    """What stood in the rows is what the state counts, filtered, without duplicates, and in the
    epochs' order exactly once."""
    seen = {part.name: [] for part in data.components}
    rows = dict.fromkeys(seen, 0)
    tokens = {}
    for step in range(steps):
        batch = data.batch(step)
        for number, row in enumerate(data.documents(step)):
            owner = {piece.component for piece in row}
            assert len(owner) <= 1
            for name in owner:
                rows[name] += 1
                seen[name] += [(rows[name], p.file, p.record, p.start, p.length) for p in row]
            for segment, piece in enumerate(row, 1):
                held = batch["tokens"][number][batch["segment_ids"][number] == segment]
                key = (piece.component, piece.file, piece.record, piece.start)
                same = tokens.setdefault(key, held)
                least = min(len(same), len(held))
                np.testing.assert_array_equal(same[:least], held[:least])
    taken = data.state(steps)["taken"]
    assert {name: entry["rows"] for name, entry in taken.items()} == rows
    for part in data.components:
        lengths = np.diff(part.store.offsets)
        allowed = (lengths >= settings.filter.min_tokens) & (lengths <= settings.filter.max_tokens)
        for epoch in range(taken[part.name]["epoch"]):
            first = epoch * part.rows
            inside = [s for s in seen[part.name] if first < s[0] <= first + part.rows]
            held = sum(length for *_, length in inside)
            assert held == part.tokens
            places = {(file, record, start) for _, file, record, start, _ in inside}
            assert len(places) == len(inside), "no token stands twice"
            assert allowed[[record - 1 for _, record, _ in places] if part.name else []].all()
