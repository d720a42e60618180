"""Work next to each other: the results in order, in the caller's modes, and threads that are given back."""

from __future__ import annotations

import threading

import pytest
import torch

from l2p.parallel import parallel_map, shares

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def test_two_at_a_time_each_on_one_thread_and_in_order():
    both = threading.Barrier(2, timeout=20)  # passed only if two are under way at once

    def work(item):
        both.wait()
        return item, torch.get_num_threads()

    assert parallel_map(work, range(4), CPU) == [(item, 1) for item in range(4)]
    assert torch.get_num_threads() == 2


def test_a_gpu_s_work_and_a_single_piece_stay_where_they_are():
    here = threading.get_ident()
    for items, device in (([1], CPU), ([1, 2], torch.device("cuda"))):
        assert parallel_map(lambda _: threading.get_ident(), items, device) == [here] * len(items)


def test_gradients_and_autocast_are_the_caller_s():
    x = torch.ones(4, 4, requires_grad=True)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for y in parallel_map(lambda _: x @ x, range(2), CPU):
            assert y.dtype == torch.bfloat16 and not y.requires_grad
    for y in parallel_map(lambda _: x @ x, range(2), CPU):
        assert y.dtype == torch.float32 and y.requires_grad


def test_an_error_is_raised_and_the_threads_are_back():
    def work(item):
        raise KeyError(item)

    with pytest.raises(KeyError):
        parallel_map(work, range(3), CPU)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("count", "sizes"), [(32, [16, 16]), (25, [12, 13]), (15, [15]), (1, [1])])
def test_shares_cover_the_batch_and_are_not_too_small(count, sizes):
    found = [range(count)[some] for some in shares(count, CPU)]
    assert [len(part) for part in found] == sizes and [i for part in found for i in part] == list(
        range(count)
    )
    assert shares(count, torch.device("cuda")) == [slice(0, count)]
