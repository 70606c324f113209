"""Threads of a pool compute alone, and take items one after the other."""

import threading

import pytest
import torch

from ssdistill.data.thread_pool import each, thread_pool


def test_operations_run_in_one_thread_and_others_keep_theirs():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with thread_pool(2, "test") as pool:
            counts = [pool.submit(torch.get_num_threads).result() for _ in range(4)]
            later = []
            other = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
            other.start()
            other.join()
        assert counts == [1] * 4
        assert (torch.get_num_threads(), later) == (2, [2])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 3])
def test_every_item_is_worked_on_once(threads):
    done = []
    with thread_pool(threads, "test") as pool:
        each(pool, threads, done.append, range(100))
        each(pool, threads, done.append, [])
    assert sorted(done) == list(range(100))


def test_an_error_reaches_the_caller():
    with thread_pool(2, "test") as pool, pytest.raises(ZeroDivisionError):
        each(pool, 2, lambda item: 1 // item, [1, 0, 2])
