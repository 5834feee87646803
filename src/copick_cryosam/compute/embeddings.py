"""The stored embeddings of one tomogram, where a job opens it: used where they match, kept where that is asked."""

from __future__ import annotations

import logging
from functools import cached_property
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from copick_cryosam.errors import DataError
from copick_cryosam.io.features import KEPT_ENCODERS, Kept, KeptEmbeddings, Origin, digest
from copick_cryosam.io.job import TomogramUri
from copick_cryosam.io.project import Project
from copick_cryosam.types import Grid, Progress

if TYPE_CHECKING:
    import torch

    from copick_cryosam.encoders import Encoder
    from copick_cryosam.features import Features

__all__ = ["TomogramEmbeddings"]

logger = logging.getLogger(__name__)


class TomogramEmbeddings:
    """An `EmbeddingStore` for one tomogram of a project; what it does is logged in one line.

    Parameters
    ----------
    uri : of the tomogram
    volume : its voxels as they were read, shape (Z, Y, X)
    grid : its grid
    encoder : that made the embeddings, or would
    device : where the features go
    reuse : use stored ones where they match
    keep : store what is computed; what is there of CryoSAM's own is replaced
    replace_foreign : replace features of the same name by others, too
    """

    def __init__(
        self,
        project: Project,
        run: str,
        uri: TomogramUri,
        volume: NDArray[np.float32],
        grid: Grid,
        encoder: Encoder,
        device: torch.device,
        *,
        reuse: bool = True,
        keep: bool = False,
        replace_foreign: bool = False,
        progress: Progress | None = None,
    ) -> None:
        self._kept = KeptEmbeddings(project, run, uri, encoder.name) if encoder.name in KEPT_ENCODERS else None
        self._run, self._encoder, self._device = run, encoder, device
        self._volume, self._grid = volume, grid
        self._reuse, self._keep, self._replace_foreign = reuse, keep, replace_foreign
        self._progress = progress
        self.reused = False

    def load(self, polarity: str) -> Features | None:
        """See `EmbeddingStore.load`.

        Raises
        ------
        OutputError
            Embeddings are to be kept where they cannot be; told before the tomogram is encoded.
        """
        if self._kept is None:
            return None
        found = self._find(self._kept, polarity) if self._reuse else None
        self.reused = found is not None
        if found is None and self._keep:
            self._kept.check_place(replace_foreign=self._replace_foreign)
        return found

    def keep(self, polarity: str, features: Features) -> None:
        """See `EmbeddingStore.keep`.

        Raises
        ------
        OutputError
            The storage fails; nothing partial is left.
        """
        from copick_cryosam.features import DenseFeatures

        if self._kept is None or not self._keep:
            return
        assert isinstance(features, DenseFeatures)
        self._kept.save(self._origin(polarity), features, replace_foreign=self._replace_foreign)
        logger.info("run %s: embeddings kept as %s", self._run, self._kept.name)

    def _find(self, kept: KeptEmbeddings, polarity: str) -> Features | None:
        if kept.absent:
            return None
        origin = self._origin(polarity)
        state, why = kept.compare(origin)
        if state is Kept.USABLE:
            try:
                features = kept.load(origin, self._device, self._tell)
            except DataError as error:
                why = error.message
            else:
                logger.info("run %s: embeddings %s reused", self._run, kept.name)
                # frozen: mypy misses that nobody assigns to a protocol's attributes
                return cast("Features", features)
        logger.info("run %s: encoded anew; stored embeddings are not used: %s", self._run, why)
        return None

    def _tell(self, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress("load", done, total)

    def _origin(self, polarity: str) -> Origin:
        return Origin(
            encoder=self._encoder.name,
            signature=self._encoder.signature,
            polarity=polarity,
            voxel_spacing=self._grid.voxel_spacing,
            shape_zyx=self._grid.shape_zyx,
            sha256=self._sha256,
        )

    @cached_property
    def _sha256(self) -> str:
        return digest(self._volume)
