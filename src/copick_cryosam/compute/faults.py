"""Errors of one run get the run's name, and running out of memory becomes advice."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

from copick_cryosam.config import Settings
from copick_cryosam.errors import CryosamError, DeviceError
from copick_cryosam.sasi.settings import SasiSettings

__all__ = ["detached", "naming", "telling_memory"]

_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")
"""What torch says in a plain RuntimeError when the machine's own memory does not suffice."""


@contextmanager
def naming(run: str, settings: Settings | SasiSettings, what: str = "") -> Iterator[None]:
    """Name the run in the errors of what is done inside.

    Raises
    ------
    CryosamError
        As raised inside, with ``run <name>`` in front where the message lacks it.
    DeviceError
        Memory ran out.
    """
    try:
        with telling_memory(f"run {run}: expected enough {{}} for the tomogram", _advice(settings)):
            yield
    except CryosamError as error:
        if f"run {run}" in error.message:
            raise
        raise type(error)(f"run {run}{what}: {error.message}", hint=error.hint) from error


@contextmanager
def telling_memory(expected: str, advice: str) -> Iterator[None]:
    """Say what to do where memory does not suffice for what is done inside.

    Parameters
    ----------
    expected : the beginning of the error, with ``{}`` for the kind of memory
    advice : what to change so that less is needed

    Raises
    ------
    DeviceError
        Memory ran out.
    """
    try:
        yield
    except MemoryError:
        raise _out_of_memory(expected, advice, "memory") from None
    except RuntimeError as error:
        import torch

        on_gpu = isinstance(error, torch.cuda.OutOfMemoryError)
        if not on_gpu and not any(words in str(error) for words in _NO_MEMORY):
            raise
        raise _out_of_memory(expected, advice, "GPU memory" if on_gpu else "memory") from None


def detached(error: CryosamError) -> CryosamError:
    """The same error without its traceback, whose frames would keep the run's arrays alive."""
    return copy.copy(error)


def _advice(settings: Settings | SasiSettings) -> str:
    if isinstance(settings, SasiSettings):
        return f"Lower --batch (now {settings.inference.batch})"
    encoder = settings.encoder
    # embednet works on blocks, vision transformers on planes
    block = (
        f"encoder.tile (now {encoder.tile})"
        if encoder.name in ("embednet", "fake")
        else f"encoder.batch (now {encoder.batch}), set encoder.longest_side to less"
    )
    return f"Halve segmenter.batch (now {settings.segmenter.batch}) and {block} in a --settings file,"


def _out_of_memory(expected: str, advice: str, which: str) -> DeviceError:
    cpu = " or use --device cpu" if which != "memory" else " or give the process more memory"
    return DeviceError(f"{expected.replace('{}', which)}, found none left", hint=f"{advice}{cpu}")
