"""Damaged Blosc chunks are refused before the decoder sees them."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from copick_cryosam.io.decoding import CheckedBlosc, guard

numcodecs = pytest.importorskip("numcodecs")
DATA = np.random.default_rng(0).normal(size=4096).astype(np.float32)
CODEC = numcodecs.Blosc(cname="lz4", clevel=5, shuffle=1)
CHUNK = bytes(CODEC.encode(DATA))


def test_whole_chunks_decode_as_ever() -> None:
    decoded = np.frombuffer(CheckedBlosc(CODEC).decode(CHUNK), dtype=np.float32)
    np.testing.assert_array_equal(decoded, DATA)
    out = np.empty_like(DATA)
    CheckedBlosc(CODEC).decode(CHUNK, out)
    np.testing.assert_array_equal(out, DATA)


@effort(max_examples=60, deadline=None)
@given(st.integers(0, len(CHUNK) - 1))
def test_a_chunk_cut_off_anywhere_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="a chunk of"):
        CheckedBlosc(CODEC).decode(CHUNK[:length])


@pytest.mark.parametrize(
    "chunk", [b"", b"garbage" * 99, CHUNK + b"more", b"\0" * 16], ids=["none", "text", "long", "0"]
)
def test_other_damage_is_refused(chunk: bytes) -> None:
    with pytest.raises(ValueError, match="a chunk of"):
        CheckedBlosc(CODEC).decode(chunk)


def test_more_than_there_is_room_for_is_refused() -> None:
    with pytest.raises(ValueError, match="holds 16384 bytes where 4 were expected"):
        CheckedBlosc(CODEC).decode(CHUNK, np.empty(1, dtype=np.float32))


def test_changed_payloads_do_not_end_the_process() -> None:
    """In a process of its own: a segmentation fault would end this one."""
    code = (
        "import numpy as np, numcodecs\n"
        "from copick_cryosam.io.decoding import CheckedBlosc\n"
        "rng = np.random.default_rng(1)\n"
        "codec = numcodecs.Blosc(cname='lz4', clevel=5, shuffle=1)\n"
        "chunk = codec.encode(np.random.default_rng(0).normal(size=65536).astype(np.float32))\n"
        "for _ in range(300):\n"
        "    bad = bytearray(chunk)\n"
        "    for at in rng.integers(16, len(bad), size=8):\n"
        "        bad[at] = rng.integers(256)\n"
        "    try:\n"
        "        CheckedBlosc(codec).decode(bytes(bad))\n"
        "    except (RuntimeError, ValueError):\n"
        "        pass\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_other_codecs_are_left_alone() -> None:
    import zarr

    plain = zarr.array(DATA, compressor=numcodecs.GZip())
    assert guard(plain)._compressor.codec_id == "gzip"
    blosc = guard(zarr.array(DATA, compressor=CODEC))
    assert isinstance(blosc._compressor, CheckedBlosc)
    np.testing.assert_array_equal(blosc[:], DATA)
