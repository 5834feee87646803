"""Clusters of embeddings: their number is found, copies of one kind stay together, few are the rest."""

from __future__ import annotations

import numpy as np
import pytest

from copick_cryosam import clustering
from copick_cryosam.clustering import cluster


def embeddings(counts: tuple[int, ...], spread: float = 0.1, dim: int = 32) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    kinds = np.repeat(np.arange(len(counts)), counts)
    centres = rng.normal(size=(len(counts), dim)) / np.sqrt(dim)
    return (centres[kinds] + spread / np.sqrt(dim) * rng.normal(size=(len(kinds), dim))).astype(np.float32), kinds


def test_kinds_are_found_with_their_number_and_named_by_size() -> None:
    features, kinds = embeddings((10, 40, 25))
    labels = cluster(features)
    assert [set(labels[kinds == kind]) for kind in range(3)] == [{3}, {1}, {2}]


def test_one_kind_is_one_cluster() -> None:
    features, _ = embeddings((40,))
    assert set(cluster(features)) == {1}


def test_small_clusters_are_the_rest() -> None:
    features, kinds = embeddings((30, 2, 30))
    labels = cluster(features, 3)
    assert set(labels[kinds == 1]) == {0}
    assert set(labels[kinds != 1]) == {1, 2}


def test_the_number_may_be_told() -> None:
    features, _ = embeddings((20, 20, 20, 20))
    assert set(cluster(features, 2)) == {1, 2}
    assert set(cluster(features, 1)) == {1}


def test_many_are_clustered_by_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clustering, "_SAMPLE", 40)
    features, kinds = embeddings((90, 60))
    labels = cluster(features)
    assert set(labels[kinds == 0]) == {1}
    assert set(labels[kinds == 1]) == {2}


@pytest.mark.parametrize("count", [0, 1, 3, 7, 8])
def test_few_or_equal_embeddings_are_no_error(count: int) -> None:
    labels = cluster(np.ones((count, 5), dtype=np.float32))
    assert labels.shape == (count,)
    assert set(labels) <= {0, 1}
