"""Reading a copick project: its runs, objects, tomograms, seeds and regions of interest.

Whatever the configuration says (file system, data portal, Croissant), copick lists and opens the data;
nothing here assumes files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from copick_cryosam.errors import DataError, InputError, NotFoundError, SeedError
from copick_cryosam.io.job import Job, PicksUri, SegmentationUri, TomogramUri, same_spacing
from copick_cryosam.io.storage import reason, storage_errors
from copick_cryosam.io.volume import TomogramVolume, open_tomogram, read_mask
from copick_cryosam.types import AngstromPoints, Grid

__all__ = ["Job", "ParticleObject", "Project", "Seeds", "open_project"]

_NAMES_SHOWN = 8


@dataclass(frozen=True)
class ParticleObject:
    """A pickable object; `radius` in Å, `color` as red, green, blue, 0 to 255, `label` in multilabel segmentations."""

    name: str
    radius: float
    color: tuple[int, int, int]
    label: int


@dataclass(frozen=True, eq=False)
class Seeds:
    """Labelled particles by run name; runs without any are left out."""

    positive: dict[str, AngstromPoints]
    negative: dict[str, AngstromPoints]


class Project:
    """A copick project, open for reading."""

    def __init__(self, root: Any, config: str) -> None:
        self.config = config
        self.root = root
        # On the data portal a look-up by name before the runs are listed would be a live query.
        self._runs = {str(run.name): run for run in _listed(lambda: root.runs, f"runs of {config}")}

    @property
    def overlay(self) -> str:
        """Where results are written, as people name it."""
        return str(self.root.root_overlay)

    @property
    def run_names(self) -> tuple[str, ...]:
        """All runs."""
        return tuple(self._runs)

    def run(self, name: str) -> Any:
        """copick's object for a run; for the `io` package only."""
        return self._runs[self.select_runs([name])[0]]

    def title(self, run: str) -> str:
        """What a person calls the run: the portal's run name where there is one, else the run's name."""
        return str(getattr(self.run(run), "portal_run_name", None) or run)

    def select_runs(self, names: Sequence[str] | None) -> tuple[str, ...]:
        """The names of the wanted runs in the given order, without repeats; None is all.

        A run of the data portal may be given by its number or by its title.

        Raises
        ------
        NotFoundError
            The project has no runs, or not this one; the message names some that there are.
        """
        if not self._runs:
            raise NotFoundError(f"project {self.config}: expected runs, found none", hint="Check its static_root")
        if names is None:
            return self.run_names
        titles: dict[str, list[str]] = {}
        for name, run in self._runs.items():
            titles.setdefault(str(getattr(run, "portal_run_name", None) or name), []).append(name)
        chosen = []
        for name in names:
            matching = [name] if name in self._runs else titles.get(name, [])
            if len(matching) != 1:
                raise NotFoundError(
                    f"run: expected a run of the project, found {name!r}", hint=f"Runs are {_some(self.run_names)}"
                )
            chosen += matching
        return tuple(dict.fromkeys(chosen))

    def object(self, name: str) -> ParticleObject:
        """A particle of the project.

        Raises
        ------
        NotFoundError
            No such object; the message names those there are.
        InputError
            It is no particle, or has no radius.
        """
        known = {str(each.name): each for each in self.root.pickable_objects}
        if name not in known:
            particles = [each for each, value in known.items() if value.is_particle]
            raise NotFoundError(
                f"object: expected a pickable object of the project, found {name!r}",
                hint=f"Particles are {_some(particles)}" if particles else "Add it to pickable_objects in the config",
            )
        found = known[name]
        if not found.is_particle:
            raise InputError(
                f"object {name}: expected a particle, found is_particle false", hint="Correct it in the config"
            )
        if found.radius is None or not 0 < found.radius < float("inf"):
            raise InputError(
                f"object {name}: expected a radius over 0 Å, found {found.radius}", hint="Set radius in the config"
            )
        red, green, blue = (int(part) for part in (found.color or (0, 158, 115))[:3])
        return ParticleObject(name, float(found.radius), (red, green, blue), int(found.label or 0))

    def tomogram(self, run: str, uri: TomogramUri, level: int = 0) -> TomogramVolume:
        """The tomogram of a run that `uri` means; its voxel spacing is the stored one.

        Raises
        ------
        NotFoundError
            The run has none of this type and spacing; the message names those it has.
        InputError
            Several match.
        DataError
            Its metadata cannot be read.
        """
        found = self.stored_tomogram(run, uri)
        return open_tomogram(found, f"run {self._label(run)}, tomogram {_tomogram_name(found)}", level)

    def stored_tomogram(self, run: str, uri: TomogramUri) -> Any:
        """copick's object for a tomogram, errors as of `tomogram`; for the `io` package only."""
        stored = self._tomograms(run)
        wanted = [
            each
            for each in stored
            if each.tomo_type == uri.tomo_type
            and (uri.voxel_spacing is None or same_spacing(_spacing_of(each), uri.voxel_spacing))
        ]
        if len(wanted) > 1 and uri.voxel_spacing is not None:
            # Spacings are stored with three decimals; an exact one wins over its neighbours.
            exact = [each for each in wanted if abs(_spacing_of(each) - uri.voxel_spacing) < 5e-4]
            wanted = exact or wanted
        names = sorted({_tomogram_name(each) for each in stored})
        if not wanted:
            raise NotFoundError(
                f"run {self._label(run)}: expected tomogram {uri}, found {_some(names) if names else 'no tomograms'}",
                hint="Give one that is stored with -t type@spacing, or choose other runs with -r",
            )
        if len(wanted) > 1:
            matching = ", ".join(_tomogram_name(each, verbose=True) for each in wanted)
            raise InputError(
                f"run {self._label(run)}: expected one tomogram for {uri}, found {len(wanted)}: {matching}",
                hint="Give type and spacing of one of them with -t",
            )
        return wanted[0]

    def seeds(self, job: Job) -> Seeds:
        """The labelled particles that the job names, in its seed runs; picks the job writes are never among them.

        Raises
        ------
        SeedError
            There are none; the message names the picks of the object that exist.
        DataError
            Picks cannot be read or hold positions that are not finite.
        """
        runs = self.select_runs(job.seed_runs)
        positive = self._read_picks(job.seeds, runs, job.output)
        if not positive:
            raise self.no_picks("seeds", job.seeds, runs, job.output)
        negative = {} if job.negatives is None else self._read_picks(job.negatives, runs, job.output)
        if job.negatives is not None and not negative:
            raise self.no_picks("negatives", job.negatives, runs, job.output)
        return Seeds(positive, negative)

    def no_picks(self, field: str, uri: PicksUri, runs: Sequence[str], output: PicksUri | None = None) -> SeedError:
        """What to raise where `uri` means no point in any of `runs`; names the picks of the object that there are."""
        self.object(uri.object_name)
        there = sorted(
            {
                _picks_name(each)
                for run in self.run_names
                for each in self._picks(run)
                if each.pickable_object_name == uri.object_name and _picks_name(each) != str(output)
            }
        )
        return SeedError(
            f"{field}: expected points at {uri}, found none in {len(runs)} run{'s' if len(runs) != 1 else ''}",
            hint=f"Picks of {uri.object_name} are {_some(there)}"
            if there
            else f"Label one {uri.object_name} in any copick viewer and save it",
        )

    def roi(self, run: str, uri: SegmentationUri, grid: Grid) -> NDArray[np.bool_]:
        """The region of interest on the tomogram's grid, shape `grid.shape_zyx`.

        Raises
        ------
        NotFoundError
            The run has no such segmentation at the tomogram's voxel spacing; the message names those it has.
        InputError
            Several match.
        DataError
            It lies on another grid, or cannot be read.
        """
        stored = _listed(lambda: self.run(run).segmentations, f"segmentations of run {self._label(run)}")
        matching = {
            _segmentation_name(each): each
            for each in reversed(stored)
            if uri.matches(each.name, each.user_id, each.session_id)
            and same_spacing(each.voxel_size, grid.voxel_spacing)
            and (uri.voxel_spacing is None or same_spacing(each.voxel_size, uri.voxel_spacing))
            and not each.is_panoptic
        }
        if not matching:
            names = sorted({_segmentation_name(each) for each in stored})
            raise NotFoundError(
                f"run {self._label(run)}: expected region of interest {uri} at {grid.voxel_spacing} Å, found "
                f"{_some(names) if names else 'no segmentations'}",
                hint="Give one that is stored at the tomogram's voxel spacing with --roi",
            )
        if len(matching) > 1:
            raise InputError(
                f"run {self._label(run)}: expected one region of interest for {uri}, found {_some(sorted(matching))}",
                hint="Give name, user and session of one of them with --roi",
            )
        name, found = matching.popitem()
        return read_mask(found, grid, f"run {self._label(run)}, region of interest {name}")

    def _label(self, run: str) -> str:
        title = self.title(run)
        return run if title == run else f"{run} ({title})"

    def _tomograms(self, run: str) -> list[Any]:
        """All tomograms of a run; where the overlay repeats one of the static part, copick's own first choice."""
        what = f"tomograms of run {self._label(run)}"
        found: dict[tuple[str, float], list[Any]] = {}
        for spacing in _listed(lambda: self.run(run).voxel_spacings, what):
            for each in _listed(lambda of=spacing: of.tomograms, what):
                same = found.setdefault((each.tomo_type, _spacing_of(each)), [])
                if each.read_only or not same:
                    same.append(each)
        return [each for same in found.values() for each in same]

    def _picks(self, run: str) -> list[Any]:
        """All picks of a run; where the overlay repeats picks of the static part, copick's own first choice."""
        found: dict[str, Any] = {}
        for each in _listed(lambda: self.run(run).picks, f"picks of run {self._label(run)}"):
            found.setdefault(_picks_name(each), each)
        return list(found.values())

    def _read_picks(self, uri: PicksUri, runs: Iterable[str], output: PicksUri) -> dict[str, AngstromPoints]:
        points = {}
        for run in runs:
            positions = [
                self._positions(each, run)
                for each in self._picks(run)
                if uri.matches(each.pickable_object_name, each.user_id, each.session_id)
                and _picks_name(each) != str(output)
            ]
            together = AngstromPoints(np.concatenate([np.empty((0, 3)), *positions]))
            if len(together):
                points[run] = together
        return points

    def _positions(self, picks: Any, run: str) -> NDArray[np.float64]:
        what = f"picks {_picks_name(picks)} of run {self._label(run)}"
        try:
            # Refinement keeps its shifts in the transformations: the particle is at location plus translation.
            positions = np.asarray(picks.full_positions(), dtype=np.float64).reshape(-1, 3)
        except storage_errors(ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{what}: expected readable JSON, found: {reason(error)}", hint="Save them again") from None
        if not np.isfinite(positions).all():
            raise DataError(f"{what}: expected finite positions, found NaN or infinity", hint="Save them again")
        return positions


def open_project(config: str | Path) -> Project:
    """Open the project of a copick configuration file.

    Raises
    ------
    NotFoundError
        The file is missing, or the project's storage or the data portal cannot be reached.
    InputError
        It is no copick configuration.
    """
    path = str(config)
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise NotFoundError(
            f"config {path}: expected a copick configuration, found: {reason(error)}", hint="Give its path with -c"
        ) from None
    except ValueError as error:
        raise InputError(f"config {path}: expected JSON, found: {reason(error)}", hint="Correct the file") from None
    if not isinstance(content, dict):
        raise InputError(
            f"config {path}: expected a JSON object, found {type(content).__name__}", hint="Correct the file"
        )
    content.setdefault("config_type", "filesystem")

    import copick
    from gql.transport.exceptions import TransportError
    from pydantic import ValidationError

    try:
        root = copick.from_string(json.dumps(content))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "configuration"
        raise InputError(f"config {path}: {field}: {first['msg']}", hint="Correct the file") from None
    except (ValueError, TypeError, ImportError) as error:
        raise InputError(f"config {path}: {reason(error)}", hint="Correct the file") from None
    except storage_errors(TransportError) as error:
        raise NotFoundError(
            f"config {path}: expected reachable storage, found: {reason(error)}",
            hint="Check the network, the credentials and the paths in the file",
        ) from None
    return Project(root, path)


def _listed(listing: Any, what: str) -> list[Any]:
    try:
        return list(listing())
    except (ValueError, IndexError) as error:
        # copick takes names apart at underscores and spacings as numbers; a stray file breaks the whole list.
        raise DataError(
            f"{what}: expected only copick's own files, found a name that cannot be read ({reason(error)})",
            hint="Move files that copick did not write out of the run's folders",
        ) from None
    except storage_errors() as error:
        raise NotFoundError(
            f"{what}: expected reachable storage, found: {reason(error)}", hint="Check the network and the credentials"
        ) from None


def _spacing_of(tomogram: Any) -> float:
    return float(tomogram.voxel_spacing.voxel_size)


def _tomogram_name(tomogram: Any, verbose: bool = False) -> str:
    portal_id = getattr(tomogram.meta, "portal_tomo_id", None)
    name = f"{tomogram.tomo_type}@{_spacing_of(tomogram)}"
    return f"{name} (portal tomogram {portal_id})" if verbose and portal_id is not None else name


def _picks_name(picks: Any) -> str:
    return f"{picks.pickable_object_name}:{picks.user_id}/{picks.session_id}"


def _segmentation_name(segmentation: Any) -> str:
    kind = segmentation.segmentation_type
    name = f"{segmentation.name}:{segmentation.user_id}/{segmentation.session_id}@{segmentation.voxel_size}"
    return name if kind == "binary" else f"{name}?{kind}=true"


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMES_SHOWN])
    return shown if len(names) <= _NAMES_SHOWN else f"{shown} and {len(names) - _NAMES_SHOWN} more"
