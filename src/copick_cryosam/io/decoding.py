"""Keeps damaged chunks from bringing the whole process down.

Blosc believes what a chunk's header says about its length and reads on beyond the end of a chunk that was cut
off, which ends in a segmentation fault as often as in an error. So the header is compared with the bytes
that are there before they are handed over.
"""

from __future__ import annotations

import struct
from typing import Any

_HEADER = 16
"""Bytes of a Blosc header; the lengths of data, block and chunk are at 4, 8 and 12, little-endian."""


class CheckedBlosc:
    """A Blosc codec that refuses chunks whose header does not fit them; otherwise as the codec it wraps."""

    def __init__(self, codec: Any) -> None:
        self._codec = codec

    def decode(self, buf: Any, out: Any = None) -> Any:
        """Decode a chunk.

        Raises
        ------
        ValueError
            The chunk is shorter or longer than its header says, or holds more than there is room for.
        """
        chunk = memoryview(buf).cast("B")
        if len(chunk) < _HEADER:
            raise ValueError(f"a chunk of {len(chunk)} bytes, too short for a Blosc header")
        holds, _, length = struct.unpack_from("<III", chunk, 4)
        if length != len(chunk):
            raise ValueError(f"a chunk of {len(chunk)} bytes whose header says {length}")
        if out is not None and memoryview(out).nbytes != holds:
            raise ValueError(f"a chunk that holds {holds} bytes where {memoryview(out).nbytes} were expected")
        return self._codec.decode(buf, out)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._codec, name)


def guard(array: Any) -> Any:
    """The Zarr array, its Blosc codec checked; arrays with other codecs are returned as they are."""
    codec = getattr(array, "_compressor", None)
    if getattr(codec, "codec_id", None) == "blosc":
        array._compressor = CheckedBlosc(codec)
    return array
