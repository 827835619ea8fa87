"""Dynamic batching: what is joined, in which order, and that nobody pays for another's request."""

import asyncio
import threading
import time

import numpy as np
import pytest
from tests.serve.predict.conftest import classify, encode, table, weights

from ziggurat.core.errors import ServeError
from ziggurat.serve.errors import EngineStopped, QueueFull
from ziggurat.serve.predict import export
from ziggurat.serve.predict.batching import BatchScheduler, ProgramFailed, Queue, QueueTimeout
from ziggurat.serve.predict.bundle import LoadedBundle
from ziggurat.serve.predict.config import Batching
from ziggurat.serve.predict.program import BundleProgram
from ziggurat.serve.predict.statistics import Statistics


class Gate(BundleProgram):
    """A program that notes its batches and runs when it is let."""

    def __init__(self, program):
        self.__dict__.update(vars(program))
        self.batches, self.poison = [], None
        self.entered, self.open = threading.Event(), threading.Event()
        self.open.set()

    def execute(self, sizes, inputs):
        self.entered.set()
        assert self.open.wait(30)
        first = next(iter(inputs.values()))
        self.batches.append(first[:, 0].tolist())
        if self.poison is not None and self.poison in first[:, 0]:
            raise MemoryError("poisoned")
        return super().execute(sizes, inputs)


@pytest.fixture(scope="module")
def digits(made):
    return LoadedBundle.load(made / "digits" / "1", batch_sizes=(1, 2, 4))


@pytest.fixture(scope="module")
def encoder(made):
    return LoadedBundle.load(made / "encoder" / "1", batch_sizes=(4,))


@pytest.fixture
def scheduler():
    with BatchScheduler() as made:
        yield made


def queue_of(scheduler, bundle, gate=None, **limits):
    settings = Batching(**{"max_batch_size": 4, **limits})
    programs = [gate or bundle.programs[0]]
    return Queue(scheduler, bundle.manifest, programs, settings, Statistics())


def rows(number, value=1.0):
    x = np.zeros((number, 16), np.float32)
    x[:, 0] = value
    return {"x": x}


async def held(gate, queue, requests, before=lambda: None):
    """Outcomes of requests that all came while the device was busy with another one."""
    gate.open.clear()
    gate.entered.clear()
    busy = asyncio.ensure_future(queue.infer(rows(1, -1.0)))
    await asyncio.to_thread(gate.entered.wait, 30)
    tasks = [asyncio.ensure_future(queue.infer(*request)) for request in requests]
    await asyncio.sleep(0)
    before()
    for _ in range(3):
        await asyncio.sleep(0)
    gate.open.set()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    await busy
    return found


def test_what_waits_is_joined_in_order_up_to_the_limit(scheduler, digits):
    gate = Gate(digits.programs[0])
    queue = queue_of(scheduler, digits, gate)
    asked = [(rows(1, 1.0),), (rows(2, 2.0),), (rows(2, 3.0),), (rows(1, 4.0),), (rows(1, 5.0),)]
    found = asyncio.run(held(gate, queue, asked))
    # One and two rows leave no room for two more; the padding of three is a row of zeros.
    assert gate.batches[1:] == [[1, 2, 2, 0], [3, 3, 4, 5]]
    for (given,), (probabilities, label) in zip(asked, found, strict=True):
        wanted = classify(weights(), given["x"], np)
        np.testing.assert_allclose(probabilities, wanted[0], 1e-5, 1e-6)
        assert label.tolist() == wanted[1].tolist()
    counted = queue.statistics
    assert (counted.inference_count, counted.execution_count) == (8, 3)
    assert {size: batch.compute_infer.count for size, batch in counted.batches.items()} == {
        1: 1, 3: 1, 4: 1,
    }  # fmt: skip


def test_a_lone_request_waits_for_company_as_long_as_it_is_told(scheduler, digits):
    gate = Gate(digits.programs[0])
    queue = queue_of(scheduler, digits, gate, max_queue_delay_us=10_000_000)

    async def ask():
        first = asyncio.ensure_future(queue.infer(rows(1)))
        await asyncio.sleep(0.1)
        assert not first.done()
        await asyncio.gather(first, queue.infer(rows(3)))  # full: it goes at once

    asyncio.run(asyncio.wait_for(ask(), 5))
    assert [len(batch) for batch in gate.batches] == [4]


def test_a_full_queue_refuses(scheduler, digits):
    gate = Gate(digits.programs[0])
    queue = queue_of(scheduler, digits, gate, max_queue=3)
    found = asyncio.run(held(gate, queue, [(rows(1),)] * 5))
    refused = [error for error in found if isinstance(error, QueueFull)]
    assert len(refused) == 2
    assert refused[0].status == 429
    assert queue.statistics.failures["REJECTED"] == 2
    assert queue.waiting == 0


def test_one_requests_trouble_is_not_the_others(scheduler, digits):
    gate = Gate(digits.programs[0])
    gate.poison = 13.0
    queue = queue_of(scheduler, digits, gate)
    found = asyncio.run(held(gate, queue, [(rows(1, v),) for v in (1.0, 13.0, 2.0)]))
    assert [isinstance(outcome, ProgramFailed) for outcome in found] == [False, True, False]
    assert queue.statistics.failures["BACKEND"] == 1
    assert queue.statistics.parts["success"].count == 3


def test_late_and_cancelled_requests_are_not_run(scheduler, digits):
    gate = Gate(digits.programs[0])
    queue = queue_of(scheduler, digits, gate)
    tasks = []

    async def ask():
        tasks.append(asyncio.ensure_future(queue.infer(rows(1, 7.0))))
        outcome = await held(
            gate, queue, [(rows(1, 8.0), 1), (rows(1, 9.0),)], lambda: tasks[0].cancel()
        )
        return outcome, await asyncio.gather(*tasks, return_exceptions=True)

    # The cancelled one may be first on the device; then it has run before it was cancelled.
    (late, fine), (gone,) = asyncio.run(ask())
    assert isinstance(late, QueueTimeout)
    assert fine[1].shape == (1,)
    assert isinstance(gone, asyncio.CancelledError) or gone[1].shape == (1,)
    assert not any(8.0 in batch for batch in gate.batches)
    assert queue.statistics.failures["REJECTED"] == 1


def test_what_does_not_fit_never_enters(scheduler, digits, encoder):
    queue = queue_of(scheduler, digits)
    wrong = [np.zeros(shape, np.float32) for shape in ((5, 16), (1, 15), (0, 16))]
    for x in wrong:
        with pytest.raises(ServeError):
            asyncio.run(queue.infer({"x": x}))
    assert queue.statistics.failures["OTHER"] == 3
    tokens = np.ones((1, 9), np.int32)
    long = {"tokens": tokens, "mask": tokens}
    with pytest.raises(ServeError, match="dimension t: found 9; expected at most 8"):
        asyncio.run(queue_of(scheduler, encoder).infer(long))


def test_sizes_of_one_bucket_are_joined_and_cropped(scheduler, encoder):
    queue = queue_of(scheduler, encoder, max_queue_delay_us=200_000)
    draw = np.random.default_rng(0)
    asked = [draw.integers(0, 50, (1, length)).astype(np.int32) for length in (1, 3, 4, 2)]

    async def ask():
        return await asyncio.gather(
            *(queue.infer({"tokens": t, "mask": np.ones_like(t)}) for t in asked)
        )

    for tokens, (embedding,) in zip(asked, asyncio.run(ask()), strict=True):
        wanted = encode(table(), tokens, np.ones_like(tokens), np)["embedding"]
        np.testing.assert_allclose(embedding, wanted, 1e-5, 1e-6)
    assert queue.statistics.execution_count == 1


def test_many_clients_get_their_own_answers(scheduler, digits, encoder):
    queues = queue_of(scheduler, digits, max_queue_delay_us=200), queue_of(scheduler, encoder)
    draw = np.random.default_rng(0)

    async def one(number):
        n = int(draw.integers(1, 5))
        if number % 2:
            x = draw.standard_normal((n, 16)).astype(np.float32)
            probabilities, _ = await queues[0].infer({"x": x})
            np.testing.assert_allclose(probabilities, classify(weights(), x, np)[0], 1e-4, 1e-6)
        else:
            tokens = draw.integers(0, 50, (n, int(draw.integers(1, 9)))).astype(np.int32)
            mask = np.ones_like(tokens)
            (found,) = await queues[1].infer({"tokens": tokens, "mask": mask})
            wanted = encode(table(), tokens, mask, np)["embedding"]
            np.testing.assert_allclose(found, wanted, 1e-4, 1e-6)
        return n

    async def ask():
        return await asyncio.gather(*map(one, range(300)))

    counts = asyncio.run(ask())
    both = [queue.statistics for queue in queues]
    assert sum(s.inference_count for s in both) == sum(counts)
    assert sum(s.parts["success"].count for s in both) == 300
    assert all(s.execution_count < 150 for s in both)


def test_a_closed_queue_refuses_and_the_end_settles_what_waits(digits):
    with BatchScheduler() as scheduler:
        gate = Gate(digits.programs[0])
        queue = queue_of(scheduler, digits, gate, max_queue_delay_us=10_000_000)

        async def ask():
            waiting = asyncio.ensure_future(queue.infer(rows(1)))
            await asyncio.sleep(0.05)
            # Retiring a queue runs what waits without further delay.
            await asyncio.to_thread(scheduler.retire, queue)
            with pytest.raises(EngineStopped):
                await queue.infer(rows(1))
            return await waiting

        assert asyncio.run(ask())[1].shape == (1,)
        other = queue_of(scheduler, digits, max_queue_delay_us=10_000_000)

        async def end():
            waiting = asyncio.ensure_future(other.infer(rows(1)))
            await asyncio.sleep(0.05)
            await asyncio.to_thread(scheduler.close)
            with pytest.raises(EngineStopped):
                await waiting

        asyncio.run(end())


def test_the_oldest_of_all_models_goes_first(digits, encoder):
    """A model under load does not starve another one."""
    with BatchScheduler() as scheduler:
        gate = Gate(digits.programs[0])
        busy, quiet = queue_of(scheduler, digits, gate), queue_of(scheduler, encoder)
        order = []

        async def ask():
            gate.open.clear()
            tasks = [asyncio.ensure_future(busy.infer(rows(4))) for _ in range(3)]
            await asyncio.sleep(0)
            tokens = np.ones((1, 2), np.int32)
            tasks.append(asyncio.ensure_future(quiet.infer({"tokens": tokens, "mask": tokens})))
            await asyncio.sleep(0)
            tasks += [asyncio.ensure_future(busy.infer(rows(4))) for _ in range(3)]
            await asyncio.sleep(0)
            for number, task in enumerate(tasks):
                task.add_done_callback(lambda _, number=number: order.append(number))
            gate.open.set()
            await asyncio.gather(*tasks)

        asyncio.run(ask())
        assert order == list(range(7))


def test_limits_are_checked():
    with pytest.raises(ValueError, match="max_queue: found 0"):
        Batching(max_queue=0)
    assert Batching(max_batch_size=1).buckets == (1,)


@pytest.fixture(scope="module")
def open_sizes(tmp_path_factory):
    """A model whose second dimension has no table."""
    path = tmp_path_factory.mktemp("open") / "1"
    export(lambda x: x * 2, None, "x:FP32[b,t] -> y", path, platforms=["cpu"])
    return LoadedBundle.load(path, batch_sizes=(1, 4))


def test_other_models_run_while_one_compiles(open_sizes, digits, scheduler, monkeypatch):
    """And a client that left while its program was compiled is not computed for."""
    compiling, go_on = threading.Event(), threading.Event()
    slow, fast = queue_of(scheduler, open_sizes), queue_of(scheduler, digits)
    real = BundleProgram.compile

    def compile(program, sizes):
        if "t" in sizes and not program.has(sizes):
            compiling.set()
            assert go_on.wait(30)
        return real(program, sizes)

    monkeypatch.setattr(BundleProgram, "compile", compile)

    async def ask():
        first = asyncio.ensure_future(slow.infer({"x": np.ones((1, 7), np.float32)}))
        left = asyncio.ensure_future(slow.infer({"x": np.ones((1, 9), np.float32)}))
        await asyncio.to_thread(compiling.wait, 30)
        outputs = await asyncio.wait_for(fast.infer(rows(1)), 30)
        assert not first.done()
        left.cancel()
        go_on.set()
        (doubled,) = await first
        assert doubled.tolist() == [[2.0] * 7]
        return outputs

    assert len(asyncio.run(ask())) == 2
    end = time.monotonic() + 30
    while slow.compiling and time.monotonic() < end:  # the one that left is let go in its turn
        time.sleep(0.01)
    assert slow.compiling == 0
    assert not any(9 in key for key in open_sizes.programs[0]._compiled)
    assert slow.statistics.plain()["execution_count"] == 1
