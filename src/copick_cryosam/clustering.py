"""Which embeddings belong to one kind: clusters without labels and without their number.

Whitened, so that directions that part kinds count as much as those in which all particles vary; Ward's linkage;
the number of clusters of the best mean silhouette (Rousseeuw, 1987). Whitening hides how small differences are, so
clusters whose mean embeddings hardly differ are then one: the copies of a single kind are not parted.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from copick_cryosam.types import FloatArray
from copick_cryosam.unit_vectors import to_unit

__all__ = ["by_size", "cluster"]

# Chosen on simulated tomograms of kinds that training saw (validate_discovery --tuning).
SMALLEST = 4
"""Particles; smaller clusters are the rest."""
_SHRINKAGE = 0.1
"""Of the covariance towards a multiple of the identity."""
_SAME = 0.05
"""Cosine distance of two clusters' means under which they are one."""
_MOST = 24
"""Clusters at most, where their number is to be found."""
_SAMPLE = 4000
"""Embeddings that are clustered; others join the nearest cluster. Bounds memory at about 0.3 GB."""


def cluster(features: NDArray[np.float32], count: int | None = None) -> NDArray[np.int64]:
    """The cluster of each embedding, by falling size from 1 on; 0 is the rest.

    Parameters
    ----------
    features : shape (N, C)
    count : how many clusters; None: found automatically

    Returns
    -------
    int64, shape (N,)
    """
    total = len(features)
    if total < 2 * SMALLEST or count == 1:
        return np.full(total, 1 if total >= SMALLEST or (count == 1 and total) else 0, dtype=np.int64)
    rng = np.random.default_rng(0)
    sample = np.sort(rng.choice(total, _SAMPLE, replace=False)) if total > _SAMPLE else np.arange(total)
    raw = to_unit(features.astype(np.float64))
    white = _whiten(raw)
    labels = _linked(white[sample], count)
    if count is None:
        labels = _joined(raw[sample], labels)
    everywhere = np.empty(total, dtype=np.int64)
    everywhere[sample] = labels
    others = np.setdiff1d(np.arange(total), sample)
    if len(others):
        names = np.unique(labels)
        means = to_unit(np.stack([white[sample][labels == name].mean(axis=0) for name in names]))
        everywhere[others] = names[np.argmax(white[others] @ means.T, axis=1)]
    return by_size(everywhere, SMALLEST)


def _linked(white: FloatArray, count: int | None) -> NDArray[np.int64]:
    distance = np.maximum(1 - white @ white.T, 0)
    np.fill_diagonal(distance, 0)
    # on unit vectors the Euclidean distance, which Ward's linkage is made for, is sqrt(2 (1 - cosine))
    tree = linkage(squareform(np.sqrt(2 * distance), checks=False), "ward")
    if count is None:
        numbers = range(2, max(3, min(_MOST, len(white) // 2) + 1))
        count = max(numbers, key=lambda k: _silhouette(distance, fcluster(tree, k, "maxclust")))
    return np.asarray(fcluster(tree, count, "maxclust"), dtype=np.int64)


def _silhouette(distance: FloatArray, labels: NDArray[np.int32]) -> float:
    names, index, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    if len(names) < 2:
        return -1.0
    sums = np.stack([distance[:, labels == name].sum(axis=1) for name in names], axis=1)
    rows = np.arange(len(labels))
    own = sums[rows, index] / np.maximum(sizes[index] - 1, 1)
    means = sums / sizes
    means[rows, index] = np.inf
    other = means.min(axis=1)
    values = (other - own) / np.maximum(np.maximum(other, own), 1e-12)
    return float(np.where(sizes[index] > 1, values, 0.0).mean())


def _joined(raw: FloatArray, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """The two clusters of the closest means become one, again and again, as long as these hardly differ."""
    labels = labels.copy()
    while True:
        names = np.unique(labels)
        means = to_unit(np.stack([raw[labels == name].mean(axis=0) for name in names]))
        cosine = means @ means.T
        np.fill_diagonal(cosine, -1)
        a, b = np.unravel_index(int(cosine.argmax()), cosine.shape)
        if len(names) < 2 or 1 - cosine[a, b] >= _SAME:
            return labels
        labels[labels == names[b]] = names[a]


def by_size(labels: NDArray[np.int64], smallest: int = 1) -> NDArray[np.int64]:
    """Clusters named anew, from 1 on by falling size; those of fewer than `smallest` join the rest, 0."""
    names, index, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    sizes[names == 0] = 0
    order = np.argsort(-sizes, kind="stable")
    renamed = np.zeros(len(names), dtype=np.int64)
    renamed[order] = np.arange(1, len(names) + 1)
    renamed[sizes < smallest] = 0
    return np.asarray(renamed[index], dtype=np.int64)


def _whiten(vectors: FloatArray) -> FloatArray:
    centred = vectors - vectors.mean(axis=0)
    covariance = centred.T @ centred / max(len(centred) - 1, 1)
    size = max(float(np.trace(covariance)) / len(covariance), 1e-12)
    values, axes = np.linalg.eigh(covariance + _SHRINKAGE * size * np.eye(len(covariance)))
    return to_unit(centred @ axes / np.sqrt(values))
