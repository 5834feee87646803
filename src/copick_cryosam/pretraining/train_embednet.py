"""Train EmbedNet on simulated pairs of tomograms.

    python -m copick_cryosam.pretraining.train_embednet --pool FOLDER --out FOLDER --steps 5200

The query of CryoSAM is the mean feature over a particle's mask (eq. 4), so that is what is trained: the
mean over one particle must be closer to the cells of every other particle of its kind, in both
tomograms, than to cells of other kinds, membranes and background (supervised contrastive loss). Two
heads learn the foreground and the centres of particles of any kind.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from copick_cryosam.contrast import standardise
from copick_cryosam.encoders.embednet import STRIDE, EmbedNet
from copick_cryosam.pretraining import loop
from copick_cryosam.pretraining.pool import Sample

TEMPERATURE = 0.1
CELLS_PER_PARTICLE = 12
BACKGROUND_CELLS = 768


@dataclass(frozen=True, eq=False, kw_only=True)
class Batch:
    """A pair of crops at the stride of the net.

    volumes (2, 1, Z, Y, X); labels (2, Z/2, Y/2, X/2), 0 is none; foreground and centre targets as labels;
    kind of each label per tomogram (index 0 unused); clutter as labels.
    """

    volumes: Tensor
    labels: Tensor
    foreground: Tensor
    centre: Tensor
    clutter: Tensor
    kinds: tuple[Tensor, Tensor]


def crop_of(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Three quarters of a sample across, all of its depth, in multiples of the net's coarsest cell, 16 voxels."""
    z, y, x = shape
    return z // 16 * 16, y * 3 // 4 // 16 * 16, x * 3 // 4 // 16 * 16


def prepare(sample: Sample, rng: np.random.Generator, crop: tuple[int, int, int]) -> Batch:
    """Crop, flip and turn a sample, both tomograms alike, and bring its truth to the net's stride."""
    flips = [axis for axis in range(3) if rng.random() < 0.5]
    swap = rng.random() < 0.5
    gain = float(np.exp(rng.normal() * 0.1))
    volumes, labels, fronts, centres, clutters, kinds = [], [], [], [], [], []
    for t in range(2):
        shape = sample.volumes.shape[1:]
        start = [int(rng.integers(0, (n - c) // 2 + 1)) * 2 for n, c in zip(shape, crop, strict=True)]
        box = tuple(slice(s, s + c) for s, c in zip(start, crop, strict=True))
        heat = centre_heat(sample.centres[t] - np.array(start), sample.radii[t], crop)
        maps = [standardise(sample.volumes[t])[box] * gain, sample.labels[t][box], heat, sample.clutter[t][box]]
        for k, array in enumerate(maps):
            array = np.flip(array, tuple(flips))
            maps[k] = np.ascontiguousarray(array.swapaxes(1, 2) if swap else array)
        volume, label, heat, clutter = maps
        front = F.avg_pool3d(torch.from_numpy((label > 0).astype(np.float32))[None, None], STRIDE)[0, 0]
        coarse = torch.from_numpy(label[::2, ::2, ::2].astype(np.int64))
        coarse[front < 0.5] = 0
        volumes.append(torch.from_numpy(volume)[None])
        labels.append(coarse)
        fronts.append(front)
        centres.append(F.avg_pool3d(torch.from_numpy(heat)[None, None], STRIDE)[0, 0])
        clutters.append(torch.from_numpy(clutter[::2, ::2, ::2].copy()))
        kinds.append(torch.from_numpy(np.concatenate([[-1], sample.kinds[t]])))
    return Batch(
        volumes=torch.stack(volumes),
        labels=torch.stack(labels),
        foreground=torch.stack(fronts),
        centre=torch.stack(centres),
        clutter=torch.stack(clutters),
        kinds=(kinds[0], kinds[1]),
    )


def centre_heat(centres: np.ndarray, radii: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """A Gaussian of 0.35 radii at every centre, the highest where they meet; float32, `shape`."""
    heat = np.zeros(shape, dtype=np.float32)
    for centre, radius in zip(centres, radii, strict=True):
        sigma = max(0.35 * float(radius), 1.5)
        half = int(np.ceil(3 * sigma))
        start = np.clip(np.round(centre).astype(int) - half, 0, shape)
        stop = np.clip(np.round(centre).astype(int) + half + 1, 0, shape)
        if (stop <= start).any():
            continue
        axes = [
            np.exp(-((np.arange(a, b) - c) ** 2) / (2 * sigma**2)) for a, b, c in zip(start, stop, centre, strict=True)
        ]
        box = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        heat[box] = np.maximum(heat[box], np.einsum("z,y,x->zyx", *axes).astype(np.float32))
    return heat


def contrastive_loss(embeddings: Tensor, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Supervised contrastive losses of pooled queries (see the module's head): against cells, against each other."""
    queries, query_kind, keys, key_kind, key_owner = [], [], [], [], []
    owner = 0
    for t in range(2):
        flat = embeddings[t].flatten(1).T
        labels = batch.labels[t].flatten()
        order = torch.argsort(labels, stable=True)
        sizes = torch.bincount(labels, minlength=1)
        begin = int(sizes[0])
        for label in range(1, len(sizes)):
            size = int(sizes[label])
            if size >= 12:
                cells = order[begin : begin + size]
                queries.append(flat[cells].mean(dim=0))
                query_kind.append(int(batch.kinds[t][label]))
                some = cells[torch.randint(size, (CELLS_PER_PARTICLE,), generator=generator)]
                keys.append(flat[some])
                key_kind += [int(batch.kinds[t][label])] * CELLS_PER_PARTICLE
                key_owner += [owner] * CELLS_PER_PARTICLE
                owner += 1
            begin += size
        for empty, share in ((batch.clutter[t].flatten() & (labels == 0), 3), (labels == 0, 1)):
            places = torch.nonzero(empty)[:, 0]
            if len(places):
                count = BACKGROUND_CELLS // (share + 1)
                some = places[torch.randint(len(places), (count,), generator=generator)]
                keys.append(flat[some])
                key_kind += [-1] * count
                key_owner += [-1] * count
    if not queries:
        return embeddings.sum() * 0, embeddings.sum() * 0
    query = F.normalize(torch.stack(queries), dim=1)
    kind_q, kind_k = torch.tensor(query_kind)[:, None], torch.tensor(key_kind)[None]
    own = torch.tensor(key_owner)[None] == torch.arange(len(queries))[:, None]
    cells = _drawn_together(query @ torch.cat(keys).T, kind_q == kind_k, own)
    whole = _drawn_together(query @ query.T, kind_q == kind_q.T, torch.eye(len(queries), dtype=torch.bool))
    return cells, whole


def _drawn_together(cosine: Tensor, same: Tensor, own: Tensor) -> Tensor:
    """Mean negative log share of the keys of a query's kind among all keys; all of shape (queries, keys)."""
    # a particle's own cells are neither: pulling a query to itself teaches nothing about its kind
    scores = (cosine / TEMPERATURE).masked_fill(own, -torch.inf)
    positive = same & ~own
    counts = positive.sum(dim=1)
    usable = counts > 0
    if not usable.any():
        return cosine.sum() * 0
    log_share = F.log_softmax(scores[usable], dim=1).masked_fill(own[usable], 0.0)
    return (-(log_share * positive[usable]).sum(dim=1) / counts[usable]).mean()


def map_loss(maps: Tensor, batch: Batch) -> Tensor:
    """Foreground: balanced cross-entropy; centre: cross-entropy that weighs the peaks up."""
    front, centre = maps[:, 0], maps[:, 1]
    weight = 1 + 2 * batch.foreground
    a = F.binary_cross_entropy_with_logits(front, batch.foreground, weight=weight)
    b = F.binary_cross_entropy_with_logits(centre, batch.centre, weight=1 + 8 * batch.centre)
    return a + b


def train(arguments: argparse.Namespace) -> None:
    """Train with the options of `main`."""
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    net = EmbedNet().to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def loss_of(sample: Sample, step: int) -> tuple[Tensor, Sequence[float]]:
        generator = torch.Generator().manual_seed(arguments.seed * 1_000_003 + step)
        rng = np.random.default_rng([arguments.seed, step, 1])
        batch = prepare(sample, rng, crop_of(sample.volumes.shape[1:]))
        # at last the batch statistics stand still, as they do when the net is used
        net.train(step < round(arguments.moving * arguments.steps))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=arguments.bf16):
            embeddings, maps = net(batch.volumes.contiguous(memory_format=torch.channels_last_3d))
        cells, whole = contrastive_loss(embeddings.float(), batch, generator)
        heads = map_loss(maps.float(), batch)
        loss = cells + arguments.whole_weight * whole + arguments.heads_weight * heads
        return loss, (float(cells.detach()), float(whole.detach()), float(heads.detach()))

    loop.run(arguments, net, loss_of, ("cells", "particles", "maps"))


def main() -> None:
    """Parse the command line and train."""
    parser = loop.options(__doc__, steps=5200)
    parser.add_argument("--heads-weight", type=float, default=2.0, help="of foreground and centres in the loss")
    parser.add_argument("--whole-weight", type=float, default=0.0, help="of particles against particles in the loss")
    parser.add_argument(
        "--moving", type=float, default=0.5, help="share of the steps in which batch statistics are still learned"
    )
    train(parser.parse_args())


if __name__ == "__main__":
    main()
