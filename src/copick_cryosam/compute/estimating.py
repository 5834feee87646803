"""How much memory and time one tomogram may need, roughly and at most."""

from __future__ import annotations

import math
from collections.abc import Mapping

from copick_cryosam.compute.models import NamedModel
from copick_cryosam.config import HALO, EncoderSettings, SegmenterSettings, Settings
from copick_cryosam.foundation.catalogue import Sam2Entry, SamEntry, SamKind, TransformerEntry
from copick_cryosam.types import Grid

__all__ = ["estimate"]

_PROCESS_BYTES = 0.4e9
"""Python, torch and the embedded weights."""
_BYTES_PER_VOXEL = 40
"""The tomogram twice, features, similarity and labels."""
_TILE_BYTES_PER_VOXEL = 80
"""Activations of the embedded encoder, for the voxels of a tile."""
_ENCODE_SECONDS = {"embednet": 1.2e-6, "fake": 0.5e-6}
"""One CPU core, per voxel and half turn."""
_DECODE_SECONDS = {"promptnet": 6e-3, "fake": 0.2e-3, "sam": 0.3, "sam2": 0.3}
"""One CPU core, per prompt."""
_BF16_GAIN = {"embednet": 2.8, "promptnet": 1.7}
"""How many times faster they are in bf16, on CPUs that compute with it."""
_READ_SECONDS = 0.1e-6
_LOOK_SECONDS = 16e-3
"""One CPU core, per candidate of the second look."""
_COMPANY_SECONDS = 15e-3
"""One CPU core in fp32, per likely candidate of another tomogram that competes; in bf16 half of that."""
_WALKS = 6
"""Walks of one proposal: up and down three axes; each prompts at most `extent` object radii of planes."""

_CORE_FLOPS = 5e10
"""What one CPU core reaches in float32. Measured on two cores were 50 to 145 GFLOP/s per core for the image encoder
of SAM and for large transformers, and half that for small ones."""
_SAM_FLOPS: dict[SamKind, float] = {"vit_h": 5961e9, "vit_l": 2986e9, "vit_b": 972e9}
"""SAM's image encoder on a picture of 1024 x 1024, counted."""
_SAM2_FLOPS = {"sam2.1-large": 1823e9, "sam2.1-base-plus": 646e9, "sam2.1-small": 359e9, "sam2.1-tiny": 291e9}
"""SAM 2's image encoder, likewise."""
_SAM2_KEPT = 32 * 256**2 + 64 * 128**2 + 256 * 64**2
"""Numbers that SAM 2 keeps of a plane: features at three resolutions."""
_SAM2_TOKENS = 256**2
"""Tokens of SAM 2's first blocks, which need the most memory."""
_SAM_PATCH, _SAM_SIDE, _SAM_CHANNELS = 16, 1024, 256
_ACTIVATIONS = 16
"""Numbers that a layer keeps per token and channel: input, keys, queries, values, and four times that in between."""

_Views = list[tuple[int, int]]
"""For each of three views, the number of planes and of tokens on each plane."""


def estimate(
    grid: Grid, radius_vox: float, settings: Settings, models: Mapping[str, NamedModel], *, others: int = 0
) -> tuple[float, float] | None:
    """Bytes, and seconds on one CPU core, for one tomogram; None where a model's size is not known.

    Parameters
    ----------
    radius_vox : of the object, voxels
    models : see `named_models`
    others : tomograms of the job beside this one; where that are no more than keep it company, the candidates of all
        of them compete once
    """
    if not all(model.known for model in models.values()):
        return None
    z, y, x = grid.shape_zyx
    voxels = z * y * x
    memory, seconds = _PROCESS_BYTES + _BYTES_PER_VOXEL * voxels, _READ_SECONDS * voxels
    encoder, segmenter = models["encoder"].entry, models["segmenter"].entry
    if encoder is None:
        memory += _TILE_BYTES_PER_VOXEL * min(voxels, (settings.encoder.tile + 2 * HALO) ** 3)
        turns = settings.encoder.turns if settings.encoder.name == "embednet" else 1
        seconds += turns * _seconds(_ENCODE_SECONDS, settings.encoder) * voxels
    else:
        views = _encoder_views(grid, settings, encoder)
        memory += _held(encoder, views, settings.encoder.batch, 2)
        seconds += sum(planes * _flops(encoder, tokens) for planes, tokens in views) / _CORE_FLOPS
    if segmenter is not None:
        sides = settings.segmenter.longest_side or _SAM_SIDE
        square = settings.segmenter.padding == "square" or isinstance(segmenter, Sam2Entry)
        views = _views(grid, sides, _SAM_PATCH, square=square)
        # At most: planes are encoded when a prompt needs them.
        memory += _held(segmenter, views, settings.segmenter.encode_batch, 4)
        seconds += sum(planes * _flops(segmenter, tokens) for planes, tokens in views) / _CORE_FLOPS
    # Particles lie a diameter apart; there are hardly more of them than cubes of that edge.
    proposals = min(settings.matching.max_proposals, max(1.0, voxels / (2 * max(radius_vox, 1.0)) ** 3))
    if settings.looks_again:
        seconds += min(settings.alignment.candidates, proposals) * _LOOK_SECONDS
        if others > settings.alignment.company:
            seconds += settings.alignment.company * _competing(proposals) * _COMPANY_SECONDS
    planes = proposals * _WALKS * settings.segmenter.extent * max(radius_vox, 1.0)
    decodes = planes / _planes_a_decode(settings.segmenter, radius_vox)
    return memory, seconds + decodes * _seconds(_DECODE_SECONDS, settings.segmenter)


def _planes_a_decode(settings: SegmenterSettings, radius_vox: float) -> int:
    """Planes that one prompt tells of."""
    if settings.name != "promptnet":
        return 1
    from copick_cryosam.segmenters.prompting import half_window
    from copick_cryosam.segmenters.promptnet import planes_told

    return 2 * planes_told(settings.slab, 2 * half_window(radius_vox) + 1) + 1


def _competing(proposals: float) -> float:
    """How many candidates of another tomogram compete, at most."""
    from copick_cryosam.contenders import LIKELY, SUREST

    return min(LIKELY + SUREST, proposals)


def _seconds(each: Mapping[str, float], settings: EncoderSettings | SegmenterSettings) -> float:
    import torch

    from copick_cryosam.devices import fastest_dtype

    low = fastest_dtype(settings.precision, torch.device("cpu")) is torch.bfloat16
    return each[settings.name] / (_BF16_GAIN.get(settings.name, 1.0) if low else 1.0)


def _encoder_views(grid: Grid, settings: Settings, entry: SamEntry | Sam2Entry | TransformerEntry) -> _Views:
    if isinstance(entry, SamEntry | Sam2Entry):
        return _views(grid, settings.encoder.longest_side or _SAM_SIDE, _SAM_PATCH)
    return _views(grid, settings.encoder.longest_side, entry.patch)


def _views(grid: Grid, longest_side: int | None, patch: int, *, square: bool = False) -> _Views:
    """Planes and tokens of the views across z, y and x; `longest_side` None: one pixel per voxel."""
    views = []
    for axis, planes in enumerate(grid.shape_zyx):
        sides = [side for other, side in enumerate(grid.shape_zyx) if other != axis]
        scale = 1.0 if longest_side is None else longest_side / max(sides)
        cells = [math.ceil(side * scale / patch) for side in sides]
        views.append((planes, max(cells) ** 2 if square else cells[0] * cells[1]))
    return views


def _flops(entry: SamEntry | Sam2Entry | TransformerEntry, tokens: int) -> float:
    """Floating-point operations, two for a multiplication and addition, of one plane."""
    if isinstance(entry, Sam2Entry):
        return _SAM2_FLOPS[entry.name]
    if isinstance(entry, SamEntry):
        # Attention is within windows in all but four layers, so the work grows with the tokens.
        return _SAM_FLOPS[entry.kind] * tokens / (_SAM_SIDE // _SAM_PATCH) ** 2
    # Per layer, 12 matrices of width x width on each token, and tokens against tokens twice.
    width = entry.embedding_dim
    return entry.layers * (24.0 * width**2 * tokens + 4.0 * tokens**2 * width)


def _held(entry: SamEntry | Sam2Entry | TransformerEntry, views: _Views, batch: int, bytes_each: int) -> float:
    """Bytes of the weights, of the embeddings of all planes and of a batch's activations."""
    if isinstance(entry, Sam2Entry):
        planes = sum(count for count, _ in views)
        activations = 4 * _ACTIVATIONS * entry.width * batch * _SAM2_TOKENS
        return 4.0 * entry.parameters + float(_SAM2_KEPT * bytes_each * planes + activations)
    sam = isinstance(entry, SamEntry)
    width = entry.width if isinstance(entry, SamEntry) else entry.embedding_dim
    kept = (_SAM_CHANNELS if sam else width) * bytes_each * sum(planes * tokens for planes, tokens in views)
    activations = 4 * _ACTIVATIONS * width * batch * max(tokens for _, tokens in views)
    return 4.0 * entry.parameters + kept + activations
