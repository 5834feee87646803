"""What to discover: the project, the tomograms, and the picks sets that are written, one for each cluster."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from copick_cryosam.errors import InputError
from copick_cryosam.io.job import PicksUri, SegmentationUri, TomogramUri

__all__ = ["PLACE", "REST", "DiscoverJob"]

PLACE = "{cluster}"
"""Stands for the cluster's name in the session of an output URI."""
REST = "rest"
"""Name of the cluster of everything that is in no other; the others are 1, 2, and so on."""

_DEFAULT_SESSION = f"cluster-{PLACE}"


@dataclass(frozen=True, kw_only=True)
class DiscoverJob:
    """What to discover. Make it with `DiscoverJob.create`.

    Attributes
    ----------
    config : path of the copick configuration
    tomogram : the kind of tomogram that is searched
    output : the object and user of the picks, and their session up to the cluster's name
    ending : of the session, after the cluster's name
    runs : the runs that are searched; None for all
    overwrite : replace results that exist
    """

    config: str
    tomogram: TomogramUri
    output: PicksUri
    ending: str = ""
    runs: tuple[str, ...] | None = None
    overwrite: bool = False

    output_segmentation: SegmentationUri | None = None
    """Always None: no masks are made."""

    @classmethod
    def create(
        cls,
        *,
        config: str,
        tomogram: str,
        output: str,
        runs: tuple[str, ...] | None = None,
        overwrite: bool = False,
    ) -> DiscoverJob:
        """Parse the URIs.

        The output's user is ``cryosam`` unless given, its session ``cluster-{cluster}``; a session without
        ``{cluster}`` gets ``-{cluster}`` at its end: copick keeps one set of picks for each session.

        Raises
        ------
        InputError
            A URI is malformed.
        """
        of_tomogram = TomogramUri.parse(tomogram, "tomogram URI")
        where, stated, ending = output.partition(PLACE)
        if stated and ("/" not in where or PLACE in ending):
            raise InputError(
                f"output URI: expected {PLACE} once, in the session, found {output!r}",
                hint=f"Write object:user/session, for example particle:cryosam/{_DEFAULT_SESSION}",
            )
        # A cluster's name in its place lets the usual rules check the URI.
        parsed = PicksUri.parse_output(f"{where}{REST}{ending}" if stated else output, "output URI", "")
        session = output.partition("/")[2] or _DEFAULT_SESSION
        before, _, after = (session if PLACE in session else f"{session}-{PLACE}").partition(PLACE)
        return cls(
            config=config,
            tomogram=of_tomogram,
            output=replace(parsed, session_id=before),
            ending=after,
            runs=runs or None,
            overwrite=overwrite,
        )

    def set_of(self, cluster: str) -> PicksUri:
        """The picks of a cluster."""
        return replace(self.output, session_id=f"{self.output.session_id}{cluster}{self.ending}")

    def is_set(self, object_name: str, user_id: str, session_id: str) -> bool:
        """Whether picks with these names may be of a cluster of this job."""
        before, after = self.output.session_id, self.ending
        cluster = session_id[len(before) : len(session_id) - len(after)]
        return (object_name, user_id) == (self.output.object_name, self.output.user_id) and (
            session_id == f"{before}{cluster}{after}" and (cluster == REST or cluster.isdecimal())
        )

    def identity(self) -> dict[str, Any]:
        """What decides the result, for the completion record; JSON types only.

        The runs are part of it: clusters go over all of them.
        """
        return {
            "tomogram": str(self.tomogram),
            "output": str(self.set_of(PLACE)),
            "runs": None if self.runs is None else sorted(self.runs),
        }
