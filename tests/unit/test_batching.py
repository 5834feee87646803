"""Batches that shrink once when memory runs out."""

from __future__ import annotations

import logging

import pytest
import torch

from copick_cryosam.batching import Batches
from copick_cryosam.errors import DeviceError


def ranges(batches: Batches, count: int, room: int) -> list[range]:
    """The ranges that were worked on by work that has room for `room` items."""

    def work(some: slice) -> range:
        items = range(some.start, some.stop)
        if len(items) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return items

    return list(batches.run(count, work))


def test_every_item_is_worked_on_once_in_order():
    assert ranges(Batches(4, "planes", "x"), 10, 4) == [range(4), range(4, 8), range(8, 10)]
    assert ranges(Batches(4, "planes", "x"), 0, 4) == []


def test_the_batch_is_halved_once_and_stays_so(caplog):
    batches = Batches(5, "planes", "encoder.batch")
    with caplog.at_level(logging.WARNING):
        assert ranges(batches, 5, 2) == [range(2), range(2, 4), range(4, 5)]
    assert "batches of 2 planes instead of 5" in caplog.text
    assert ranges(batches, 3, 2) == [range(2), range(2, 3)]


def test_running_out_again_is_an_error():
    with pytest.raises(DeviceError, match=r"batch of 4 planes, found too little\. Set encoder\.batch to less than 4"):
        ranges(Batches(8, "planes", "encoder.batch"), 8, 3)


def test_a_batch_of_one_cannot_be_halved():
    with pytest.raises(DeviceError, match="batch of 1 prompts"):
        ranges(Batches(1, "prompts", "segmenter.batch"), 2, 0)


def test_the_cpu_s_allocator_counts_and_other_errors_pass():
    def work(error: str):
        def raising(some: slice) -> int:
            if some.stop - some.start > 1:
                raise RuntimeError(error)
            return some.start

        return raising

    message = "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"
    assert list(Batches(2, "planes", "x").run(3, work(message))) == [0, 1, 2]
    with pytest.raises(RuntimeError, match="shapes"):
        list(Batches(2, "planes", "x").run(3, work("shapes do not match")))
