"""Threads of a pool compute alone, and take items one after the other."""

import threading

import pytest
import torch

from ssdistill.data.thread_pool import thread_pool


def test_operations_run_in_one_thread_and_others_keep_theirs():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with thread_pool(2, "test") as pool:
            counts = pool.map(lambda _: torch.get_num_threads(), range(4))
            later = []
            other = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
            other.start()
            other.join()
        assert counts == [1] * 4
        assert (torch.get_num_threads(), later) == (2, [2])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 3])
def test_every_item_is_worked_on_once_and_results_are_in_order(threads):
    done = []
    with thread_pool(threads, "test") as pool:
        assert pool.map(lambda item: done.append(item) or item * 2, range(100)) == [
            2 * item for item in range(100)
        ]
        assert pool.map(done.append, []) == []
    assert sorted(done) == list(range(100))


def test_an_error_reaches_the_caller():
    with thread_pool(2, "test") as pool, pytest.raises(ZeroDivisionError):
        pool.map(lambda item: 1 // item, [1, 0, 2])


def test_two_callers_share_the_threads():
    with thread_pool(2, "test") as pool:
        results = {}
        callers = [
            threading.Thread(
                target=lambda k=k: results.update({k: pool.map(lambda i: i + k, range(50))})
            )
            for k in range(4)
        ]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    assert results == {k: [i + k for i in range(50)] for k in range(4)}


def test_threads_end_with_their_pool():
    before = threading.enumerate()
    pool = thread_pool(3, "ending")
    pool.map(lambda item: item, range(9))
    threads = [t for t in threading.enumerate() if t not in before]
    assert len([t for t in threads if t.name.startswith("ending")]) == 3
    del pool
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)
