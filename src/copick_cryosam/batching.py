"""Work in batches that shrink once when memory runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from copick_cryosam.errors import DeviceError

__all__ = ["Batches"]

logger = logging.getLogger(__name__)
_Result = TypeVar("_Result")


class Batches:
    """Runs work over ranges of at most `size` items; the first time memory runs out, `size` is halved.

    It is halved once and for all: the batch that failed is done again in two, and later ones stay small.
    A second failure is an error. Nothing moves to another device.

    Parameters
    ----------
    size : items per batch
    what : what the items are, for the messages: "planes", "prompts"
    setting : the setting that holds `size`, for the hint
    """

    def __init__(self, size: int, what: str, setting: str) -> None:
        self.size, self.what, self.setting = size, what, setting
        self._halved = False

    def run(self, count: int, work: Callable[[slice], _Result]) -> Iterator[_Result]:
        """`work` of every batch of the range 0 to `count`, in order.

        Raises
        ------
        DeviceError
            Memory ran out again after the batch had been halved, or for a batch of one.
        """
        start = 0
        while start < count:
            stop = min(start + self.size, count)
            failed = False
            try:
                result = work(slice(start, stop))
            except RuntimeError as error:
                if not _out_of_memory(error):
                    raise
                failed = True
            # Only here, as the error holds the failed batch's memory until it is gone.
            if failed:
                self._halve()
                continue
            yield result
            start = stop

    def _halve(self) -> None:
        if self._halved or self.size == 1:
            raise DeviceError(
                f"memory: expected room for a batch of {self.size} {self.what}, found too little",
                hint=f"Set {self.setting} to less than {self.size}, or free memory on the device",
            )
        self._halved = True
        before, self.size = self.size, self.size // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        logger.warning("out of memory: going on with batches of %d %s instead of %d", self.size, self.what, before)


def _out_of_memory(error: RuntimeError) -> bool:
    """torch has a class for the GPU's memory only; the CPU's allocator raises a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
