"""SAM and DINOv2 against the loop of the published code: same weights, same run, ratios per stage.

    python tests/bench/bench_foundation.py                                   # two CPU cores: ViT-B and ViT-S
    python tests/bench/bench_foundation.py --device cuda --sam vit_h --vit large \
        --shape 184 630 630 --proposals 512 --floor                          # a GPU: the paper's own models

Weights are random, of the real architectures: speed does not depend on them. The loop encodes one plane after
the other with fp32 eager DINOv2 on pictures of 518 x 518 and with SamPredictor on squares of 1024 x 1024, and
prompts one plane after the other. It is given the planes that ours encodes (the published code encodes all) and
as many prompts as ours decodes. Its times are means over a sample of `--sample` planes and prompts, taken before
and after ours, times the number of them. The published code squashes every plane to 518 x 518, which for a small
tomogram is far more than its voxels; the last column is the loop on pictures of one pixel per voxel, as ours has.

`--floor` adds floating-point operations, counted on one plane of each axis, and the share of the matrix rate that
was measured on the same device.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench_embedded import processor
from transformers import Dinov2Config, Dinov2Model

from copick_cryosam.config import EncoderSettings, SegmenterSettings
from copick_cryosam.encoders.transformer import TransformerTrunk
from copick_cryosam.encoders.vit import PlaneEncoder
from copick_cryosam.foundation.pictures import Intensities, planes_of, resize, scaled_shape
from copick_cryosam.foundation.sam_modules import official
from copick_cryosam.foundation.transformer import LoadedTransformer
from copick_cryosam.segmenters.cross_plane import segment
from copick_cryosam.segmenters.sam import SamSegmenter
from copick_cryosam.types import VoxelPoints
from official_sam import enliven, predictor

WIDTHS = {"small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}
"""DINOv2: width, depth, heads."""
PATCH, PUBLISHED_PICTURE = 14, 518


@dataclass(frozen=True, kw_only=True)
class Row:
    """One stage: what it did, seconds of ours, the loop and the loop on our pictures, our operations."""

    name: str
    count: int
    ours: float
    loop: float
    loop_alike: float
    flops: float = 0.0


class Counted:
    """Calls of a function with a batch in front, and the sizes of the batches."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.items, self.seconds = 0, 0.0

    def __call__(self, batch: torch.Tensor, *rest: Any) -> Any:
        settle(batch.device)
        began = time.perf_counter()
        result = self._function(batch, *rest)
        settle(batch.device)
        self.seconds += time.perf_counter() - began
        self.items += len(batch)
        return result


def settle(device: torch.device) -> None:
    """Wait for the GPU: its work is asynchronous."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(device: torch.device, work: Callable[[], object]) -> float:
    """Seconds that `work` takes."""
    settle(device)
    began = time.perf_counter()
    work()
    settle(device)
    return time.perf_counter() - began


def dinov2(size: str) -> Dinov2Model:
    """DINOv2 with random weights; eager attention, as the published code runs it."""
    width, depth, heads = WIDTHS[size]
    config = Dinov2Config(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        image_size=PUBLISHED_PICTURE,
        patch_size=PATCH,
        attn_implementation="eager",
    )
    return Dinov2Model(config).eval().requires_grad_(False)


def random_sam(kind: str) -> Any:
    """SAM with random weights whose masks are not empty."""
    sam = official("build_sam").sam_model_registry[kind]()
    enliven(sam)
    return sam.requires_grad_(False)


def prompts(shape: Sequence[int], radius: float, count: int, spread: bool) -> VoxelPoints:
    """Where particles are proposed: all over the tomogram, or, in a small one, around its middle."""
    rng = np.random.default_rng(0)
    size = np.array(shape)
    if spread:
        return VoxelPoints(rng.uniform(radius, size - 1 - radius, size=(count, 3)))
    return VoxelPoints(size / 2 + rng.uniform(-2, 2, size=(count, 3)))


def loop_dino(volume: torch.Tensor, model: Dinov2Model, some: int, *, squashed: bool) -> float:
    """Seconds per plane of fp32 eager DINOv2, plane by plane: each squashed to 518 x 518, or one pixel per voxel."""
    intensities = Intensities.of(volume)

    def work() -> None:
        for index in range(some):
            plane = planes_of(volume, index % 3, torch.tensor([volume.shape[index % 3] // 2]))
            whole = tuple(PATCH * max(1, round(side / PATCH)) for side in plane.shape[1:])
            shape = (PUBLISHED_PICTURE, PUBLISHED_PICTURE) if squashed else (whole[0], whole[1])
            picture = resize(intensities.to_unit(plane), shape)
            model(pixel_values=picture[:, None].expand(-1, 3, -1, -1))

    return timed(volume.device, work) / some


def loop_sam(volume: torch.Tensor, sam: Any, point: np.ndarray, some: int) -> tuple[float, float]:
    """Seconds per plane and per prompt of SamPredictor in fp32."""
    speaker = predictor(sam)
    intensities = Intensities.of(volume)
    encode = decode = 0.0
    mask = None
    for index in range(some):
        axis = index % 3
        others = [other for other in range(3) if other != axis]
        shape = tuple(volume.shape[other] for other in others)
        plane = planes_of(volume, axis, torch.tensor([int(point[axis])]))
        picture = resize(intensities.to_unit(plane), scaled_shape(shape, sam.image_encoder.img_size))
        colours = (picture[:, None] * 255).expand(-1, 3, -1, -1).contiguous()
        encode += timed(volume.device, lambda colours=colours, shape=shape: speaker.set_torch_image(colours, shape))
        scale = sam.image_encoder.img_size / max(shape)
        at = torch.tensor([[[point[others[1]] * scale, point[others[0]] * scale]]], device=volume.device).float()
        label = torch.ones((1, 1), device=volume.device)
        for _ in range(2):

            def prompt(at: torch.Tensor = at, label: torch.Tensor = label) -> None:
                nonlocal mask
                before = mask
                _, quality, low = speaker.predict_torch(at, label, mask_input=before, multimask_output=True)
                mask = low[:, quality[0].argmax()][:, None]

            decode += timed(volume.device, prompt)
    return encode / some, decode / (2 * some)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a large matrix product, the best of several."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = torch.randn(n, n, device=device, dtype=dtype), torch.randn(n, n, device=device, dtype=dtype)
    return 2 * n**3 / min(timed(device, lambda: a @ b) for _ in range(8))


def flops_of(work: Callable[[], object]) -> float:
    """Floating-point operations of `work`, 2 per multiply and add."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def run(arguments: argparse.Namespace) -> tuple[list[Row], float]:
    """Both stages, ours between two samples of the loop; and the matrix rate, 0 without `--floor`."""
    device = torch.device(arguments.device)
    torch.manual_seed(0)
    volume = torch.randn(tuple(arguments.shape)).to(device)
    points = prompts(arguments.shape, arguments.radius, arguments.proposals, arguments.spread)
    model, sam = dinov2(arguments.vit).to(device), random_sam(arguments.sam).to(device)

    def loops() -> tuple[float, ...]:
        squashed, alike = (loop_dino(volume, model, arguments.sample, squashed=how) for how in (True, False))
        return squashed, alike, *loop_sam(volume, sam, points.zyx[0], arguments.sample)

    with torch.inference_mode():
        loop_dino(volume, model, 1, squashed=True)
        loop_sam(volume, sam, points.zyx[0], 1)
        first = loops()

    settings = EncoderSettings(batch=arguments.batch, precision=arguments.precision, compile=arguments.compile)
    loaded = LoadedTransformer(
        name="dinov2", signature="random", model=model, patch=PATCH, channels=model.config.hidden_size, prefix=1
    )
    model.set_attn_implementation("sdpa")
    trunk = TransformerTrunk(loaded, device, settings.precision, settings.compile)
    encoder = PlaneEncoder("dinov2", "random", trunk, settings, device)
    encode_seconds = timed(device, lambda: encoder.encode(volume.cpu().numpy()))
    model.set_attn_implementation("eager")

    # Random masks overlap badly: without the rule every walk has its full length, as those of real particles have.
    stop = SegmenterSettings(
        name="sam",
        iou_stop=0,
        encode_batch=arguments.batch,
        batch=arguments.prompts,
        precision=arguments.precision,
        padding=arguments.padding,
        compile=arguments.compile,
    )
    segmenter = SamSegmenter(sam, "random", stop, device)
    half = SegmenterSettings.model_validate({**stop.model_dump(), "extent": 0.1})
    segment(volume, VoxelPoints(points.zyx[:1]), arguments.radius, segmenter, half, sure=True)  # as warm as the loop
    encode = segmenter._trunk.encode = Counted(segmenter._trunk.encode)  # type: ignore[method-assign]
    masks = []
    whole = timed(device, lambda: masks.extend(segment(volume, points, arguments.radius, segmenter, stop, sure=True)))
    decodes = sum(one.decodes for one in masks)

    with torch.inference_mode():
        last = loops()
    squashed, alike, sam_plane, sam_prompt = (float(np.mean(pair)) for pair in zip(first, last, strict=True))
    for name, *pair in zip(("DINOv2 plane", "same, our picture", "SAM plane", "SAM prompt"), first, last, strict=True):
        print(f"loop, seconds per {name}: {pair[0]:.3g} before, {pair[1]:.3g} after")

    rate, dino_flops, sam_flops = 0.0, 0.0, 0.0
    if arguments.floor:
        rate = matrix_rate(device, segmenter._trunk.dtype)
        for axis in range(3):
            plane = planes_of(volume, axis, torch.tensor([0]))
            small = resize(plane, trunk.picture_shape(tuple(plane.shape[1:]), None))
            dino_flops += volume.shape[axis] * flops_of(lambda small=small: trunk.encode(small))
            large = resize(plane, scaled_shape(tuple(plane.shape[1:]), segmenter._trunk.img_size)).clamp(0, 1)
            share = encode.items / sum(volume.shape)
            sam_flops += (
                share
                * volume.shape[axis]
                * flops_of(
                    lambda large=large: segmenter._trunk._embeddings(  # the counter cannot look into compiled code
                        torch.nn.functional.pad(
                            large[:, None].expand(-1, 3, -1, -1), (0, -large.shape[2] % 16, 0, -large.shape[1] % 16)
                        )
                    )
                )
            )
    planes, cut, decoding = sum(volume.shape), encode.items * sam_plane, decodes * sam_prompt
    return [
        Row(
            name="DINOv2 planes",
            count=planes,
            ours=encode_seconds,
            loop=planes * squashed,
            loop_alike=planes * alike,
            flops=dino_flops,
        ),
        Row(name="SAM planes", count=encode.items, ours=encode.seconds, loop=cut, loop_alike=cut, flops=sam_flops),
        Row(name="SAM prompts", count=decodes, ours=whole - encode.seconds, loop=decoding, loop_alike=decoding),
    ], rate


def computes(device: torch.device) -> str:
    """The name of what computes."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def show(rows: Sequence[Row], rate: float, arguments: argparse.Namespace) -> None:
    """The table, the hardware and the memory."""
    device = torch.device(arguments.device)
    shape = " x ".join(map(str, arguments.shape))
    print(f"{computes(device)}, torch {torch.__version__}, ours in {arguments.precision}, {arguments.padding} planes")
    print(f"SAM {arguments.sam}, DINOv2 {arguments.vit}; {shape} voxels, {arguments.proposals} proposals")
    print(f"{'stage':<15}{'count':>7}{'ours s':>9}{'loop s':>9}{'ratio':>8}{'our pictures':>14}  share of matrix rate")
    for row in rows:
        share = f"{row.flops / row.ours / rate:.0%} of {rate / 1e12:.3g} TFLOP/s" if rate and row.flops else ""
        ratios = f"{row.loop / row.ours:>8.1f}{row.loop_alike / row.ours:>14.1f}"
        print(f"{row.name:<15}{row.count:>7}{row.ours:>9.1f}{row.loop:>9.1f}{ratios}  {share}")
    ours, loop, alike = (sum(getattr(row, name) for row in rows) for name in ("ours", "loop", "loop_alike"))
    print(f"{'all':<15}{'':>7}{ours:>9.1f}{loop:>9.1f}{loop / ours:>8.1f}{alike / ours:>14.1f}")
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    gpu = f", GPU {torch.cuda.max_memory_allocated(device) / 1e9:.1f} GB" if device.type == "cuda" else ""
    print(f"peak memory: host {host / 1e9:.1f} GB{gpu} (both the loop and ours)")


def main() -> None:
    """Parse the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sam", default="vit_b", choices=["vit_b", "vit_l", "vit_h"])
    parser.add_argument("--vit", default="small", choices=sorted(WIDTHS))
    parser.add_argument("--shape", type=int, nargs=3, default=(24, 96, 96), metavar=("Z", "Y", "X"))
    parser.add_argument("--radius", type=float, default=3.0, help="voxels")
    parser.add_argument("--proposals", type=int, default=16)
    parser.add_argument("--spread", action="store_true", help="proposals all over, not around the middle")
    parser.add_argument("--sample", type=int, default=3, help="planes of the loop that are timed, before and after")
    parser.add_argument("--batch", type=int, default=8, help="planes per call")
    parser.add_argument("--prompts", type=int, default=128, help="prompts per call")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"])
    parser.add_argument("--padding", default="native", choices=["native", "square"])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--floor", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows, rate = run(arguments)
    show(rows, rate, arguments)


if __name__ == "__main__":
    main()
