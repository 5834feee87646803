"""From a candidate's evidence to the probability that it is a particle like the seeds.

Three small nets, learned on simulated tomograms (`pretraining.train_ranker`): the first sees the comparison with the
seeds, the second also that with the average of what the first was sure of, the third what the second says and how the
candidate fared among competing classes. Their output is a probability. On kinds that training did not draw, those in
the middle are too high, so a curve learned on such kinds (`pretraining.fit_expectation`) makes the expected precision
of a pick from it, and where to stop follows (`calibration`).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from scipy.special import expit, xlog1py, xlogy
from torch import Tensor, nn

from copick_cryosam.types import FloatArray

HIDDEN = (48, 24)
MEMBERS = 5
"""Nets whose logits are averaged."""
FIRST, SECOND, THIRD = 36, 53, 22
"""Columns of `evidence.first_evidence`, `evidence.second_evidence` and `class_evidence.third_evidence`."""
PEAKS = 135
"""Columns of `peak_evidence.peak_evidence` of EmbedNet's features."""
PAIRS = 5
"""Columns of `pair_evidence.pair_evidence`."""
Which = Literal["first", "second", "third"]
_CLIP = 4.0
"""Standard deviations; what training never saw is not extrapolated."""


class Ranker(nn.Module):
    """Standardised evidence -> logit; the mean over an ensemble.

    Parameters
    ----------
    columns : of the evidence
    """

    centre: Tensor
    scale: Tensor

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(columns))
        self.register_buffer("scale", torch.ones(columns))
        self.members = nn.ModuleList(_member(columns) for _ in range(MEMBERS))

    def standardised(self, evidence: Tensor) -> Tensor:
        """What the members are given, as `evidence`."""
        return ((evidence - self.centre) / self.scale).clamp(-_CLIP, _CLIP)

    def each(self, evidence: Tensor) -> Tensor:
        """Logit of every member, (MEMBERS, N)."""
        x = self.standardised(evidence)
        return torch.stack([member(x)[:, 0] for member in self.members])

    def forward(self, evidence: Tensor) -> Tensor:
        """Evidence (N, columns) -> logits (N,)."""
        return self.each(evidence).mean(dim=0)

    @torch.inference_mode()
    def odds(self, evidence: FloatArray) -> FloatArray:
        """Log odds of each row, shape (N,)."""
        if len(evidence) == 0:
            return np.zeros(0)
        return np.asarray(self(torch.from_numpy(evidence).float()).double().numpy())

    def probability(self, evidence: FloatArray) -> FloatArray:
        """Probability of each row, shape (N,), 0 to 1."""
        return np.asarray(expit(self.odds(evidence)))


class BetaCurve(nn.Module):
    """Probability p -> sigmoid(a ln p - b ln(1 - p) + c), which keeps the order (beta calibration, Kull et al. 2017).

    Attributes
    ----------
    coefficients : (a, b, c), a and b not negative; (1, 1, 0) leaves everything as it is
    """

    coefficients: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("coefficients", torch.tensor([1.0, 1.0, 0.0]))

    def expected(self, probability: FloatArray) -> FloatArray:
        """Of each probability, shape (N,), what share is true; 0 to 1."""
        a, b, c = (float(one) for one in self.coefficients)
        return np.asarray(expit(xlogy(a, probability) - xlog1py(b, -np.asarray(probability)) + c))


def _member(columns: int) -> nn.Module:
    a, b = HIDDEN
    return nn.Sequential(nn.Linear(columns, a), nn.SiLU(), nn.Linear(a, b), nn.SiLU(), nn.Linear(b, 1))


class Rankers(nn.Module):
    """All nets, in one file of weights."""

    signature = "ranker"

    def __init__(self) -> None:
        super().__init__()
        self.first = Ranker(FIRST)
        self.second = Ranker(SECOND)
        self.third = Ranker(THIRD)
        self.curve = BetaCurve()

    def probability(self, evidence: FloatArray, which: Which) -> FloatArray:
        """Probability of each row, shape (N,), 0 to 1."""
        return {"first": self.first, "second": self.second, "third": self.third}[which].probability(evidence)


class PeakRankers(nn.Module):
    """What judges peaks of the centre map without a seed, in one file of weights (`pretraining.train_peaks`)."""

    signature = "peaks"

    def __init__(self) -> None:
        super().__init__()
        self.peaks = Ranker(PEAKS)
        self.pairs = Ranker(PAIRS)

    def probability(self, evidence: FloatArray) -> FloatArray:
        """That each peak, a row of `peak_evidence`, is a particle of any kind; shape (N,), 0 to 1."""
        return self.peaks.probability(evidence)

    def odds(self, evidence: FloatArray) -> FloatArray:
        """Logarithm, that the two of each row of `pair_evidence` are parts of one particle; shape (P,)."""
        return self.pairs.odds(evidence)


def load_peak_rankers() -> PeakRankers:
    """The shipped ones."""
    from copick_cryosam.weights import load_weights

    rankers = PeakRankers()
    rankers.signature = load_weights("peaks", rankers)
    return rankers.eval()


def load_rankers() -> Rankers:
    """The shipped ones (see the model card beside their weights)."""
    from copick_cryosam.weights import load_weights

    rankers = Rankers()
    rankers.signature = load_weights("ranker", rankers)
    return rankers.eval()
