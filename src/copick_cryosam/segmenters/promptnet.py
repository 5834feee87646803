"""PromptNet, the embedded plane segmenter, in the role of SAM: a small 2.5D net trained on simulated tomograms.

It sees the prompt's window, four object radii wide, always at the same number of pixels: an object fills
the same part of it whatever its size and the voxel spacing. Inputs are seven neighbouring planes, the
click, the mask of a plane before and how far that is; outputs, for the five planes in the middle, are the
mask, its predicted IoU and whether the object is in the plane at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from copick_cryosam.config import SegmenterSettings
from copick_cryosam.devices import computing_in, fastest_dtype
from copick_cryosam.segmenters import Decoded
from copick_cryosam.segmenters.slabs import SlabPrompts

PIXELS = 48
"""Edge of the window as the net sees it."""
NEIGHBOURS = 3
"""Planes seen on each side of the prompted one."""
TOLD = 2
"""Planes told of on each side of the prompted one."""
CHANNELS = 2 * NEIGHBOURS + 1 + 4
_CLICK_WIDTH = 1.5
_LOGIT_RANGE = 6.0
_AWAY_RANGE = 4.0
_OUTSIDE = -8.0
"""Logit of voxels beyond the volume."""


def _conv(inside: int, outside: int, *, stride: int = 1) -> nn.Sequential:
    kernel = 4 if stride == 2 else 3
    return nn.Sequential(
        nn.Conv2d(inside, outside, kernel, stride=stride, padding=1, bias=False),
        nn.GroupNorm(8, outside),
        nn.SiLU(inplace=True),
    )


class PromptNet(nn.Module):
    """A U-Net over 48 x 48 pixels with a mask head and, from its deepest level, IoU and presence heads."""

    def __init__(self, widths: tuple[int, int, int, int] = (24, 48, 80, 96)) -> None:
        super().__init__()
        a, b, c, d = widths
        self.at1 = nn.Sequential(_conv(CHANNELS, a), _conv(a, a))
        self.at2 = nn.Sequential(_conv(a, b, stride=2), _conv(b, b))
        self.at4 = nn.Sequential(_conv(b, c, stride=2), _conv(c, c))
        self.at8 = nn.Sequential(_conv(c, d, stride=2), _conv(d, d))
        self.up4 = _conv(d + c, c)
        self.up2 = _conv(c + b, b)
        self.up1 = nn.Sequential(_conv(b + a, a), _conv(a, a))
        self.mask = nn.Conv2d(a, 2 * TOLD + 1, 1)
        self.judge = nn.Sequential(nn.Linear(d + b, 64), nn.SiLU(inplace=True), nn.Linear(64, 2 * (2 * TOLD + 1)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Input (N, CHANNELS, 48, 48) -> mask logits (N, 5, 48, 48), IoU and presence logits (N, 5) each.

        The five planes go from two before the prompted one to two behind it, in the direction of the walk.
        """
        s1 = self.at1(x)
        s2 = self.at2(s1)
        s4 = self.at4(s2)
        s8 = self.at8(s4)
        u4 = self.up4(torch.cat([_grow(s8), s4], dim=1))
        u2 = self.up2(torch.cat([_grow(u4), s2], dim=1))
        u1 = self.up1(torch.cat([_grow(u2), s1], dim=1))
        judged = self.judge(torch.cat([s8.mean(dim=(2, 3)), u2.amax(dim=(2, 3))], dim=1))
        iou, presence = judged.chunk(2, dim=1)
        return self.mask(u1), iou, presence


def _grow(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


@dataclass(frozen=True, eq=False, kw_only=True)
class Planes:
    """The planes across one axis: the volume, (1, 1, P, H, W), axis first. Nothing is encoded ahead."""

    stack: Tensor


def pitch_of(window: int) -> float:
    """Voxels from one plane that the net sees to the next: as far as pixels are apart, and a voxel at least."""
    return max(window / PIXELS, 1.0)


def planes_told(slab: int, window: int) -> int:
    """Voxels that `slab` of the net's planes reach, to each side of the prompted one."""
    return int(slab * pitch_of(window))


def windows_of(
    stack: Tensor, planes: Tensor, directions: Tensor, windows: Tensor, window: int
) -> tuple[Tensor, Tensor]:
    """Cut the prompts' windows out of a stack of planes, resampled to 48 x 48.

    Pixel j covers window voxels around ``(j + 0.5) * window / 48 - 0.5`` (half-pixel centres). Neighbouring
    planes are as far apart as pixels, so that the window looks alike at every scale.

    Parameters
    ----------
    stack : shape (1, 1, P, H, W)
    planes : shape (N,); windows : shape (N, 2), first row and column; window : voxels
    directions : shape (N,), 1 or -1: which way along the axis a walk goes; its planes come in that order

    Returns
    -------
    images, shape (N, 7, 48, 48), and inside, (N, 1, 48, 48): 1 where the pixel lies in the volume.
    """
    count, depth = len(planes), 2 * NEIGHBOURS + 1
    scale = window / PIXELS
    ramp = (torch.arange(PIXELS, device=stack.device, dtype=torch.float32) + 0.5) * scale - 0.5
    rows = windows[:, :1].float() + ramp
    columns = windows[:, 1:].float() + ramp
    steps = torch.arange(-NEIGHBOURS, NEIGHBOURS + 1, device=stack.device, dtype=torch.float32) * pitch_of(window)
    levels = planes.float()[:, None] + directions.float()[:, None] * steps
    size = torch.tensor(stack.shape[2:], device=stack.device, dtype=torch.float32)
    grid = torch.empty((count, depth, PIXELS, PIXELS, 3), device=stack.device)
    grid[..., 0] = ((columns + 0.5) / size[2] * 2 - 1)[:, None, None, :]
    grid[..., 1] = ((rows + 0.5) / size[1] * 2 - 1)[:, None, :, None]
    grid[..., 2] = ((levels + 0.5) / size[0] * 2 - 1)[:, :, None, None]
    images = F.grid_sample(
        stack, grid.reshape(1, count * depth, PIXELS, PIXELS, 3), padding_mode="border", align_corners=False
    ).reshape(count, depth, PIXELS, PIXELS)
    within_rows = (rows > -0.5) & (rows < size[1] - 0.5)
    within_columns = (columns > -0.5) & (columns < size[2] - 0.5)
    inside = (within_rows[:, :, None] & within_columns[:, None, :]).float()[:, None]
    return images * inside, inside


def assemble(images: Tensor, inside: Tensor, clicks: Tensor, previous: Tensor | None, away: Tensor) -> Tensor:
    """The net's input, (N, CHANNELS, 48, 48).

    Parameters
    ----------
    clicks : shape (N, 2), row and column in pixels of the window
    previous : mask logits of a plane before, shape (N, 48, 48), or None on the first plane
    away : how many of the net's planes before, shape (N,); 0 where there is none
    """
    axis = torch.arange(PIXELS, device=images.device, dtype=torch.float32)
    along_rows = torch.exp(-((axis - clicks[:, :1]) ** 2) / (2 * _CLICK_WIDTH**2))
    along_columns = torch.exp(-((axis - clicks[:, 1:]) ** 2) / (2 * _CLICK_WIDTH**2))
    click = (along_rows[:, :, None] * along_columns[:, None, :])[:, None]
    away = away[:, None, None, None]
    mask = torch.zeros_like(inside)
    if previous is not None:
        mask = (previous[:, None].clamp(-_LOGIT_RANGE, _LOGIT_RANGE) / _LOGIT_RANGE) * (away > 0)
    far = (away.float().clamp(max=_AWAY_RANGE) / _AWAY_RANGE).expand_as(inside)
    return torch.cat([images.clamp(-5, 5), inside, click, mask, far], dim=1)


def between(told: Tensor, levels: Tensor) -> Tensor:
    """What is told of the net's own planes, read between them, linearly.

    Parameters
    ----------
    told : shape (N, 5, ...), planes -2 to 2
    levels : shape (L,), in the net's planes, -2 to 2

    Returns
    -------
    shape (N, L, ...)
    """
    place = (levels + TOLD).clamp(0, 2 * TOLD)
    low = place.floor().long().clamp(max=2 * TOLD - 1)
    share = (place - low).reshape(-1, *[1] * (told.ndim - 2)).to(told.dtype)
    return told[:, low] * (1 - share) + told[:, low + 1] * share


def to_pixels(points: Tensor, windows: Tensor, window: int) -> Tensor:
    """Points in voxels of the plane -> pixels of the net's window, (N, 2)."""
    return (points.float() - windows.float() + 0.5) * (PIXELS / window) - 0.5


class PromptNetSegmenter:
    """PromptNet behind the protocols `PlaneSegmenter` and `SlabSegmenter`."""

    name = "promptnet"

    def __init__(self, net: PromptNet, signature: str, settings: SegmenterSettings, device: torch.device) -> None:
        self.signature = signature
        self._slab = settings.slab
        self._dtype = fastest_dtype(settings.precision, device)
        self._net = net.to(device).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._device = device

    def embed(self, volume: Tensor, axis: int, radius_vox: float) -> Planes:
        """See `PlaneSegmenter.embed`; the net reads the planes themselves, so this only turns the volume."""
        return Planes(stack=volume.to(self._device).movedim(axis, 0)[None, None])

    def planes_told(self, window: int) -> int:
        """See `SlabSegmenter.planes_told`."""
        return planes_told(self._slab, window)

    def decode(
        self,
        embeddings: Planes,
        planes: Tensor,
        points: Tensor,
        windows: Tensor,
        window: int,
        mask_prompts: Tensor | None,
    ) -> Decoded:
        """See `PlaneSegmenter.decode`: a slab's middle plane, prompted by the plane next to it."""
        ahead = torch.ones_like(planes)
        away = torch.zeros_like(planes) if mask_prompts is None else ahead
        prompts = SlabPrompts(
            planes=planes, directions=ahead, points=points, windows=windows, masks=mask_prompts, away=away
        )
        return self.decode_slab(embeddings, prompts, window, 0)[0]

    @torch.inference_mode()
    def decode_slab(self, embeddings: Planes, prompts: SlabPrompts, window: int, told: int) -> list[Decoded]:
        """See `SlabSegmenter.decode_slab`."""
        windows, pitch = prompts.windows, pitch_of(window)
        images, inside = windows_of(embeddings.stack, prompts.planes, prompts.directions, windows, window)
        clicks = to_pixels(prompts.points, windows, window)
        x = assemble(images, inside, clicks, prompts.masks, prompts.away / pitch)
        with computing_in(self._dtype, self._device):
            answer = self._net(x.contiguous(memory_format=torch.channels_last))
        levels = torch.arange(-told, told + 1, device=x.device) / pitch
        low, iou, presence = (between(each.float(), levels) for each in answer)
        logits = F.interpolate(low, size=(window, window), mode="bilinear", align_corners=False)
        height, width = embeddings.stack.shape[3:]
        rows = windows[:, :1] + torch.arange(window, device=low.device)
        columns = windows[:, 1:] + torch.arange(window, device=low.device)
        within = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
        logits = logits.masked_fill(~within[:, None], _OUTSIDE)
        iou, presence = iou.sigmoid(), presence.sigmoid()
        return [
            Decoded(logits=logits[:, k], iou=iou[:, k], presence=presence[:, k], prompt=low[:, k])
            for k in range(2 * told + 1)
        ]


def load(settings: SegmenterSettings, device: torch.device) -> PromptNetSegmenter:
    """The shipped PromptNet (see the model card beside its weights)."""
    from copick_cryosam.weights import load_weights

    net = PromptNet()
    signature = load_weights("promptnet", net)
    return PromptNetSegmenter(net, signature, settings, device)
