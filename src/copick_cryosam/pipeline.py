"""CryoSAM on arrays: encode, query, match, segment. No copick is needed here.

model = CryoSAM.from_preset("embedded")
particles = model.pick(volume, seeds_zyx=[[40, 210, 96]], radius_vox=9)
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from copick_cryosam import instances as selection
from copick_cryosam.alignment import Aligner
from copick_cryosam.averaging import cut_particles
from copick_cryosam.calibration import calibrate, stop_at
from copick_cryosam.class_evidence import third_evidence
from copick_cryosam.config import Device, Settings, override, preset
from copick_cryosam.devices import resolve_device
from copick_cryosam.diagnosis import SeedDiagnosis, diagnose, surroundings_of
from copick_cryosam.encoders import Encoder, load_encoder
from copick_cryosam.errors import InputError, SeedError
from copick_cryosam.features import DenseFeatures, EmbeddingStore
from copick_cryosam.findings import Found, Ranked, Seeded, Shortlist, Tomogram
from copick_cryosam.matching import Query, Search, merge_queries, nearest_within, scores_near, whiten_dense
from copick_cryosam.preparing import prepare
from copick_cryosam.ranker import Rankers, load_rankers
from copick_cryosam.second_look import (
    Look,
    SeedLook,
    choose,
    compete,
    compete_together,
    look_again,
    look_at_seeds,
    reference_of,
    refine_poses,
)
from copick_cryosam.segmenters import PlaneSegmenter, load_segmenter
from copick_cryosam.segmenters.cross_plane import segment
from copick_cryosam.segmenters.fusing import CrossPlaneMask
from copick_cryosam.types import Instance, Pose, Progress, Proposals, VoxelPoints, centroids
from copick_cryosam.wedge import DEFAULT_WEDGE, wedge_of


class CryoSAM:
    """The method with its models loaded; one object serves any number of tomograms."""

    def __init__(self, encoder: Encoder, segmenter: PlaneSegmenter, settings: Settings, device: torch.device) -> None:
        self.encoder = encoder
        self.segmenter = segmenter
        self.settings = settings
        self.device = device
        self.rankers: Rankers | None = load_rankers() if settings.looks_again else None
        self._search = Search(settings.matching)

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Load the models that the settings name.

        Raises
        ------
        DeviceError, InputError, NotFoundError
            No such device, model or weights.
        """
        device = resolve_device(settings.device)
        # The segmenter first: a missing file of SAM is told at once, while an encoder may be a long download.
        segmenter = load_segmenter(settings.segmenter, device)
        return cls(load_encoder(settings.encoder, device), segmenter, settings, device)

    @classmethod
    def from_preset(cls, name: str = "embedded", *, device: Device = "auto") -> CryoSAM:
        """Load the models of a preset (see `copick_cryosam.config.PRESETS`)."""
        return cls.from_settings(override(preset(name), {"device": device}))

    def pick(
        self,
        volume: NDArray[np.float32],
        seeds_zyx: ArrayLike,
        radius_vox: float,
        *,
        voxel_spacing: float | None = None,
        progress: Progress | None = None,
    ) -> list[Instance]:
        """Every particle like the seeds, in one tomogram.

        Parameters
        ----------
        volume : shape (Z, Y, X), any float unit, either polarity
        seeds_zyx : voxels, shape (N, 3), N >= 1
        radius_vox : radius of the object in voxels
        voxel_spacing : Å; tells the encoder to resample to the spacing it was trained at. None: as it is.

        Returns
        -------
        Instances with cropped masks, best first; the seeds are found again among them.

        Raises
        ------
        DataError, SeedError, InputError
            The volume cannot be used, the seeds lie outside or show nothing, or the radius is impossible.
        """
        seeds = VoxelPoints(np.asarray(seeds_zyx, dtype=np.float64))
        tomogram = self.open(volume, seeds, radius_vox, voxel_spacing=voxel_spacing, progress=progress)
        seeded = self.seed(tomogram, seeds, radius_vox)
        query = self.query([seeded])
        return self.search(tomogram, query, [seeded], radius_vox, progress=progress, known=seeds).instances

    def segment(self, volume: NDArray[np.float32], points_zyx: ArrayLike, radius_vox: float) -> list[Instance]:
        """Masks of the particles at given points only, one for each point and in their order.

        Parameters are those of `pick`. The similarity of these instances is 1, as nothing is matched.
        """
        points = VoxelPoints(np.asarray(points_zyx, dtype=np.float64))
        prepared, _ = self._prepare(volume, points, radius_vox)
        masks = self._segment(prepared, points, radius_vox, None, sure=True)
        return selection.from_masks(masks, np.ones(len(masks)))

    def open(
        self,
        volume: NDArray[np.float32],
        seeds: VoxelPoints | None,
        radius_vox: float,
        *,
        polarity: str | None = None,
        voxel_spacing: float | None = None,
        progress: Progress | None = None,
        stored: EmbeddingStore | None = None,
    ) -> Tomogram:
        """Standardise and encode a tomogram.

        Parameters
        ----------
        seeds : the seeds in it, from which polarity is decided; None where `polarity` is known
        polarity : dark or light, as decided in a tomogram that has seeds
        stored : gives the features where it has them, and is told of those that are computed

        Raises
        ------
        DataError, SeedError, InputError
            As of `pick`, or a polarity that is neither dark nor light.
        """
        if polarity not in (None, "dark", "light"):
            raise InputError(f"polarity: expected dark or light, found {polarity!r}", hint="Leave it out to decide it")
        if voxel_spacing is not None and not 0.5 <= voxel_spacing <= 100:
            raise InputError(
                f"voxel spacing: expected 0.5 to 100 Å, found {voxel_spacing:g}",
                hint="Give Å per voxel, or leave it out",
            )
        prepared, found = self._prepare(volume, seeds, radius_vox, polarity, voxel_spacing)
        wedge = DEFAULT_WEDGE if self.rankers is None else wedge_of(volume, self.settings.alignment)
        features = None if stored is None else stored.load(found)
        if features is None:
            features = self.encoder.encode(prepared, voxel_spacing=voxel_spacing, progress=progress)
            if stored is not None:
                stored.keep(found, features)
        whiten_dense(features, self.settings.matching)
        return Tomogram(volume=prepared, polarity=found, features=features, voxel_spacing=voxel_spacing, wedge=wedge)

    def prepare(self, volume: NDArray[np.float32], radius_vox: float, polarity: str) -> NDArray[np.float32]:
        """A tomogram as `open` prepares it, without its features; parameters and errors as there."""
        return self._prepare(volume, None, radius_vox, polarity)[0]

    def polarity(
        self,
        volume: NDArray[np.float32],
        seeds: VoxelPoints,
        radius_vox: float,
        *,
        voxel_spacing: float | None = None,
    ) -> str:
        """How particles look, dark or light, without encoding the tomogram; parameters and errors as of `open`."""
        return self._prepare(volume, seeds, radius_vox, None, voxel_spacing)[1]

    def seed(
        self,
        tomogram: Tomogram,
        seeds: VoxelPoints,
        radius_vox: float,
        *,
        instances: Sequence[Instance] | None = None,
        wanted: bool = True,
    ) -> Seeded:
        """Segment the seeds of a tomogram and pool their features (eqs. 1 to 4).

        Parameters
        ----------
        instances : of the seeds, where they were segmented before; what one gives does not depend on the others
        wanted : False for negatives, which are neither diagnosed nor looked at again

        Raises
        ------
        SeedError
            No seed gave a mask.
        """
        found = self.segment_seeds(tomogram, seeds, radius_vox) if instances is None else list(instances)
        solid = [one for one in found if one.size]
        if not solid:
            raise SeedError(
                f"seeds: expected at least one that can be segmented, found {len(found)} without a mask",
                hint="Check the seeds' positions, the object's radius and --polarity",
            )
        features = np.stack([tomogram.features.pool([one]) for one in solid])
        weighted = list(zip(features, [one.size for one in solid], strict=True))
        matching = self.settings.matching
        own = self._search.propose(tomogram.features, merge_queries(weighted, [], matching), radius_vox)
        scores = scores_near(own, seeds, radius_vox)
        return Seeded(
            instances=found,
            features=features,
            scores=scores,
            surroundings=surroundings_of(tomogram.features, seeds, radius_vox, tomogram.volume.shape)
            if wanted
            else None,
            look=self._look_at_seeds(tomogram, centroids(solid), scores, radius_vox) if wanted else None,
        )

    def segment_seeds(self, tomogram: Tomogram, seeds: VoxelPoints, radius_vox: float) -> list[Instance]:
        """One instance for each seed, empty where it could not be segmented."""
        masks = self._segment(tomogram.volume, seeds, radius_vox, None, sure=True)
        return selection.from_masks(masks, np.ones(len(masks)))

    def diagnose(self, seeded: Mapping[str, Seeded]) -> list[SeedDiagnosis]:
        """What the seeds of all runs, by name, say of each other: see `copick_cryosam.diagnosis`."""
        return diagnose([one.evidence(run) for run, one in seeded.items()])

    def query(self, seeded: Sequence[Seeded], negatives: Sequence[Seeded] = ()) -> Query:
        """One query from the seeds of all tomograms (eq. 4), and the features of all negatives: each stands alone."""
        against = [feature for one in negatives for feature in one.features]
        return merge_queries([pair for one in seeded for pair in one.weighted], against, self.settings.matching)

    def shortlist(
        self,
        tomogram: Tomogram,
        query: Query,
        seeded: Sequence[Seeded],
        radius_vox: float,
        *,
        roi: NDArray[np.bool_] | None = None,
        progress: Progress | None = None,
    ) -> Shortlist:
        """Propose in one tomogram, and look again (eqs. 5 and 6, then `copick_cryosam.second_look`)."""
        began = time.perf_counter()
        proposals = self._search.propose(tomogram.features, query, radius_vox, roi)
        looks = [one.look for one in seeded if one.look is not None]
        look, context = None, np.zeros(0, dtype=np.int64)
        if self.rankers is not None and looks and len(proposals):
            searched = tomogram.volume.size if roi is None else int(roi.sum())
            chosen, context = choose(len(proposals), searched, radius_vox, self.settings.alignment.candidates)
            proposals = proposals[chosen]
            with _told(progress, "second look", len(proposals)):
                look = self._look_again(tomogram, proposals, context, looks, radius_vox)
        return Shortlist(
            proposals=proposals,
            context=context,
            seed_scores=np.concatenate([one.scores for one in seeded]),
            look=look,
            wedge=tomogram.wedge,
            seconds=time.perf_counter() - began,
        )

    def share(
        self, shortlists: Sequence[Shortlist], radius_vox: float, *, progress: Progress | None = None
    ) -> list[Shortlist]:
        """Let the candidates of tomograms that keep each other company compete, once for all of them.

        What `rank` says of each is what it says with the others for `company`.

        Parameters
        ----------
        shortlists : of tomograms with the same voxel spacing, from the same seeds
        """
        began = time.perf_counter()
        looks = [one.look for one in shortlists if one.look is not None]
        if not looks:
            return list(shortlists)
        aligner = Aligner(radius_vox, self.settings.alignment, self.device)
        with _told(progress, "compete", sum(len(look.boxes) for look in looks)):
            fares = iter(compete_together(aligner, looks))
        each = (time.perf_counter() - began) / len(looks)
        return [
            one if one.look is None else replace(one, shared=next(fares), seconds=one.seconds + each)
            for one in shortlists
        ]

    def rank(
        self,
        shortlist: Shortlist,
        radius_vox: float,
        *,
        company: Sequence[Shortlist] = (),
        known: VoxelPoints | None = None,
    ) -> Ranked:
        """Let the candidates of one tomogram compete, and calibrate.

        Parameters
        ----------
        company : of other tomograms with the same voxel spacing, from the same seeds; their candidates compete, too.
            `AlignmentSettings.company` says how many of them are asked, the first ones; none after `share`.
        known : the seeds in this tomogram, which are right whatever they look like
        """
        proposals, look = shortlist.proposals, shortlist.look
        least = self.settings.instances.min_precision
        if self.rankers is None or look is None:
            calibration = calibrate(proposals, shortlist.seed_scores, least)
            return Ranked(proposals=proposals, calibration=calibration, poses=[])
        aligner = Aligner(radius_vox, self.settings.alignment, self.device)
        shared = shortlist.shared
        if shared is None:
            others = [one.look for one in company if one.look is not None]
            shared = compete(aligner, look, others[: self.settings.alignment.company])
        probable = self.rankers.probability(look.second, "second")
        evidence = third_evidence(look.first, probable, shared.fits, len(shared.seeds), shortlist.context)
        probability = self.rankers.probability(evidence, "third")
        if known is not None:
            probability[nearest_within(proposals.points, known, radius_vox)] = 1.0
        order = np.argsort(-probability, kind="stable")
        probability = probability[order]
        ranked = Proposals(
            points=VoxelPoints(proposals.points.zyx[order]),
            similarity=proposals.similarity[order],
            score=self.rankers.curve.expected(probability),
        )
        # Where to stop is up to the net's own probability: by the precision that the curve expects, F1 was no higher.
        return Ranked(
            proposals=ranked,
            calibration=stop_at(ranked.score, ranked.score, least, stop_by=probability),
            poses=look.aligned.poses(ranked.points, order),
            look=look,
            order=order,
        )

    def finer(self, ranked: Ranked, count: int, radius_vox: float) -> list[Pose]:
        """Poses of the best proposals, finer than the grid of rotations; empty without a second look."""
        if ranked.look is None:
            return []
        order = ranked.order[:count]
        aligner = Aligner(radius_vox, self.settings.alignment, self.device)
        return refine_poses(aligner, ranked.look, order).poses(ranked.proposals.points, order)

    def search(
        self,
        tomogram: Tomogram,
        query: Query,
        seeded: Sequence[Seeded],
        radius_vox: float,
        *,
        roi: NDArray[np.bool_] | None = None,
        progress: Progress | None = None,
        known: VoxelPoints | None = None,
        boxes: int = 0,
    ) -> Found:
        """Everything in one tomogram that no other keeps company; parameters of `shortlist` and `finish`."""
        shortlist = self.shortlist(tomogram, query, seeded, radius_vox, roi=roi, progress=progress)
        return self.finish(tomogram.volume, shortlist, seeded, radius_vox, progress=progress, known=known, boxes=boxes)

    def finish(
        self,
        volume: NDArray[np.float32],
        shortlist: Shortlist,
        seeded: Sequence[Seeded],
        radius_vox: float,
        *,
        company: Sequence[Shortlist] = (),
        progress: Progress | None = None,
        known: VoxelPoints | None = None,
        boxes: int = 0,
    ) -> Found:
        """Rank, segment and select in one tomogram (eqs. 1 and 2 again).

        Parameters
        ----------
        volume : of the tomogram, as `open` or `prepare` gives it
        company, known : see `rank`
        boxes : how many of the surest picks to cut out for an average
        """
        seconds: dict[str, float] = {}
        looked = 0 if shortlist.look is None or shortlist.shared is not None else len(shortlist.proposals)
        with _timed(seconds, "match"), _told(progress, "compete", looked):
            ranked = self.rank(shortlist, radius_vox, company=company, known=known)
        seconds["match"] += shortlist.seconds
        proposals, calibration = ranked.proposals, ranked.calibration
        kept = proposals[: calibration.kept][: self.settings.matching.max_proposals]
        precision = calibration.expected_precision[: len(kept)]
        with _timed(seconds, "segment"):
            masks = self._segment(volume, kept.points, radius_vox, progress)
            found = selection.from_masks(
                masks,
                kept.similarity,
                precision,
                scores=kept.score if ranked.poses else None,
                poses=self.finer(ranked, len(kept), radius_vox) or None,
                rank_by=self.settings.instances.rank_by,
            )
            seeds = [one for some in seeded for one in some.instances]
            chosen = selection.select(found, seeds, radius_vox, self.settings.instances)
        return Found(
            instances=chosen,
            proposals=proposals,
            expected_precision=calibration.expected_precision,
            threshold=calibration.threshold,
            decodes=sum(mask.decodes for mask in masks),
            seconds=seconds,
            particles=cut_particles(volume, chosen, radius_vox, shortlist.wedge, boxes) if boxes else None,
            wedge=shortlist.wedge if ranked.poses else None,
        )

    def _look_at_seeds(
        self, tomogram: Tomogram, points: VoxelPoints, scores: NDArray[np.float64], radius_vox: float
    ) -> SeedLook | None:
        if self.rankers is None or not isinstance(tomogram.features, DenseFeatures):
            return None
        aligner = Aligner(radius_vox, self.settings.alignment, self.device)
        return look_at_seeds(aligner, tomogram.volume, tomogram.features, points, scores, tomogram.wedge, radius_vox)

    def _look_again(
        self,
        tomogram: Tomogram,
        proposals: Proposals,
        context: NDArray[np.int64],
        looks: Sequence[SeedLook],
        radius_vox: float,
    ) -> Look:
        assert self.rankers is not None
        assert isinstance(tomogram.features, DenseFeatures)
        aligner = Aligner(radius_vox, self.settings.alignment, self.device)
        return look_again(
            aligner,
            tomogram.volume,
            tomogram.features,
            tomogram.wedge,
            proposals,
            reference_of(aligner, looks),
            radius_vox,
            partial(self.rankers.probability, which="first"),
            context,
        )

    def _prepare(
        self,
        volume: NDArray[np.float32],
        seeds: VoxelPoints | None,
        radius_vox: float,
        polarity: str | None = None,
        voxel_spacing: float | None = None,
    ) -> tuple[NDArray[np.float32], str]:
        return prepare(volume, seeds, radius_vox, polarity, self.settings.polarity, self.encoder, voxel_spacing)

    def _segment(
        self,
        volume: NDArray[np.float32],
        points: VoxelPoints,
        radius_vox: float,
        progress: Progress | None,
        *,
        sure: bool = False,
    ) -> list[CrossPlaneMask]:
        tell = None if progress is None else (lambda done, total: progress("segment", done, total))
        on_device = torch.from_numpy(volume).to(self.device)
        return segment(on_device, points, radius_vox, self.segmenter, self.settings.segmenter, tell, sure=sure)


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - began


@contextmanager
def _told(progress: Progress | None, stage: str, total: int) -> Iterator[None]:
    """Announce what is done as a whole before and after it; nothing where there is nothing to do."""
    tell = progress if total else None
    if tell is not None:
        tell(stage, 0, total)
    yield
    if tell is not None:
        tell(stage, total, total)
