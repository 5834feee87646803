"""From a candidate's evidence to the probability that it is a particle like the seeds.

Three small nets, learned on simulated tomograms (`pretraining.train_ranker`): the first sees the comparison with the
seeds, the second also that with the average of what the first was sure of, the third what the second says and how the
candidate fared among competing classes. Their output is a probability, so it is the expected precision of a pick, and
where to stop follows from it (`calibration`).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from copick_cryosam.types import FloatArray

HIDDEN = (48, 24)
MEMBERS = 5
"""Nets whose logits are averaged."""
FIRST, SECOND, THIRD = 36, 53, 22
"""Columns of `evidence.first_evidence`, `evidence.second_evidence` and `class_evidence.third_evidence`."""
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
    def probability(self, evidence: FloatArray) -> FloatArray:
        """Probability of each row, shape (N,), 0 to 1."""
        if len(evidence) == 0:
            return np.zeros(0)
        return np.asarray(self(torch.from_numpy(evidence).float()).double().sigmoid().numpy())


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

    def probability(self, evidence: FloatArray, which: Which) -> FloatArray:
        """Probability of each row, shape (N,), 0 to 1."""
        return {"first": self.first, "second": self.second, "third": self.third}[which].probability(evidence)


def load_rankers() -> Rankers:
    """The shipped ones (see the model card beside their weights)."""
    from copick_cryosam.weights import load_weights

    rankers = Rankers()
    rankers.signature = load_weights("ranker", rankers)
    return rankers.eval()
