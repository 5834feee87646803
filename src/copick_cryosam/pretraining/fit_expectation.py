"""Learn what the ranking's probabilities are worth on kinds that no training drew.

    python -m copick_cryosam.pretraining.fit_expectation collect --templates FOLDER --out FOLDER [--layouts NAME ...]
    python -m copick_cryosam.pretraining.fit_expectation fit --out FOLDER
    python -m copick_cryosam.pretraining.fit_expectation check --out FOLDER

Nets are surer of themselves on the families that they learned from than they may be on others. `collect` simulates
fresh kinds and tuning kinds, crowded and few, and searches them as users do; what was collected already is left as it
is. `fit` learns the three numbers of the ranking's last step (`ranker.BetaCurve`) by maximum likelihood, every layout
weighing the same, and writes them into the package's weights. Neither the order of the proposals nor where the program
stops changes. `check` says how well the curve that ships holds on what was collected. Both say what stopping by it
loses against the best threshold, which is chosen afterwards, and what that were if every expected precision were exact.

Held-out kinds take no part: they say afterwards whether the curve holds (`measure_curves`).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from scipy.optimize import minimize

from copick_cryosam.calibration import expected_f1_optimum
from copick_cryosam.pipeline import CryoSAM
from copick_cryosam.pretraining.conditions import NOISES, REFERENCE
from copick_cryosam.pretraining.curves import View, score_view
from copick_cryosam.pretraining.exam import draw_clicks
from copick_cryosam.pretraining.export import shipped
from copick_cryosam.pretraining.fresh_families import fresh_shapes
from copick_cryosam.pretraining.simulate import centres_inside
from copick_cryosam.pretraining.summaries import reliability
from copick_cryosam.pretraining.validate import Drawn, Layout, Survey, embedded, tuning_shapes
from copick_cryosam.ranker import BetaCurve
from copick_cryosam.types import FloatArray

DRAWS = 20
"""Of whether proposals are true, to say what is lost to chance."""
SEEDS = (1, 5)
"""Clicks that a kind is searched from."""
_CROWDED = Layout()
_FEW = Layout(shape_zyx=(100, 100, 100), count=3, tomograms=3)
LAYOUTS = {
    "fresh-crowded": (fresh_shapes, _CROWDED),
    "tuning-crowded": (tuning_shapes, _CROWDED),
    "fresh-few": (fresh_shapes, _FEW),
    "tuning-few": (tuning_shapes, _FEW),
}
"""Kinds, and how many of them where, by name."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Outcome:
    """What the ranking said of the proposals of one kind, the seeds left out.

    Attributes
    ----------
    probability, true, tomogram : of each proposal, shape (N,)
    left : particles that are no seeds
    seeds : clicks
    """

    probability: FloatArray
    true: NDArray[np.bool_]
    tomogram: NDArray[np.int64]
    left: int
    seeds: int

    def f1(self, curve: BetaCurve) -> float:
        """Of the proposals, cut in each tomogram where the F1 that the curve expects is largest."""
        kept = hits = 0
        for one in np.unique(self.tomogram):
            mine = np.flatnonzero(self.tomogram == one)
            mine = mine[np.argsort(-self.probability[mine], kind="stable")]
            mine = mine[: expected_f1_optimum(curve.expected(self.probability[mine]))]
            kept, hits = kept + len(mine), hits + int(self.true[mine].sum())
        return 2 * hits / max(kept + self.left, 1)

    def drawn_again(self, curve: BetaCurve, rng: np.random.Generator) -> Outcome:
        """The same proposals, true as often as the curve expects; particles that were not proposed stay lost."""
        true = rng.random(len(self.true)) < curve.expected(self.probability)
        return replace(self, true=true, left=self.left - int(self.true.sum()) + int(true.sum()))

    def best_f1(self) -> float:
        """At the best threshold, one for all tomograms."""
        hits = np.cumsum(self.true[np.argsort(-self.probability, kind="stable")])
        return float(np.max(2 * hits / (np.arange(1, len(hits) + 1) + self.left), initial=0))


def search_kinds(model: CryoSAM, drawn: Drawn, layout: Layout) -> Iterator[Outcome]:
    """Every kind of a data set, with every number of seeds that leaves enough particles.

    The model's curve must be the one that changes nothing.
    """
    view = View(model, REFERENCE, [volume for volume, _ in drawn.tomograms])
    for kind, shape in enumerate(drawn.shapes):
        truths = [centres_inside(one, kind) for one in drawn.specimens]
        clicks = draw_clicks(truths, layout.shape_zyx, shape.radius, max(SEEDS), drawn.rng)
        found = score_view(view, truths, clicks, shape, SEEDS, drawn.repeat, baseline=False)
        for row, said in zip(found.rows, found.expectations, strict=True):
            yield Outcome(
                probability=said.expected, true=said.true, tomogram=said.tomogram, left=row.left, seeds=row.seeds
            )


def save_outcomes(path: Path, outcomes: Sequence[Outcome]) -> None:
    """All outcomes of one data set; the file is there whole or not at all."""
    part = path.with_suffix(".part.npz")
    ends = np.cumsum([len(one.true) for one in outcomes])
    arrays: dict[str, Any] = {
        name: np.concatenate([np.zeros(0), *(getattr(one, name) for one in outcomes)])
        for name in ("probability", "true", "tomogram")
    }
    arrays |= {name: np.array([getattr(one, name) for one in outcomes]) for name in ("left", "seeds")}
    np.savez_compressed(part, ends=ends, **arrays)
    part.rename(path)


def read_outcomes(path: Path) -> list[Outcome]:
    """See `save_outcomes`."""
    with np.load(path) as file:
        parts = {name: np.split(file[name], file["ends"]) for name in ("probability", "true", "tomogram")}
        return [
            Outcome(
                probability=parts["probability"][k],
                true=parts["true"][k].astype(bool),
                tomogram=parts["tomogram"][k].astype(np.int64),
                left=int(left),
                seeds=int(seeds),
            )
            for k, (left, seeds) in enumerate(zip(file["left"], file["seeds"], strict=True))
        ]


def fit_curve(groups: Sequence[Sequence[Outcome]]) -> BetaCurve:
    """Maximum likelihood of the three numbers; every group weighs the same, whatever its proposals.

    Raises
    ------
    ValueError
        A group has no proposals.
    """
    said = [np.concatenate([one.probability for one in group]) for group in groups]
    true = np.concatenate([one.true for group in groups for one in group])
    if any(len(one) == 0 for one in said):
        raise ValueError("expected proposals in every layout, found one without")
    weight = np.concatenate([np.full(len(one), 1 / len(one)) for one in said])
    curve, probability = BetaCurve(), np.concatenate(said)

    def loss(numbers: FloatArray) -> float:
        curve.coefficients.copy_(torch.from_numpy(numbers))
        p = np.clip(curve.expected(probability), 1e-12, 1 - 1e-12)
        return float(-(weight * np.where(true, np.log(p), np.log1p(-p))).sum())

    found = minimize(loss, [1.0, 1.0, 0.0], method="Nelder-Mead", bounds=[(0.05, 5), (0.05, 5), (-5, 5)])
    curve.coefficients.copy_(torch.from_numpy(found.x))
    return curve


def table(groups: dict[str, list[Outcome]], curve: BetaCurve) -> str:
    """Own F1 without the curve and with it, what is lost, and expected against true precision, as Markdown."""
    lines = [
        "| layout | seeds | kinds | F1 | with the curve | best threshold | lost | lost if exact | expected: true |",
        "|" + "---|" * 9,
    ]
    rng = np.random.default_rng(0)
    for name, outcomes in groups.items():
        for seeds in sorted({one.seeds for one in outcomes}):
            some = [one for one in outcomes if one.seeds == seeds]
            expected = curve.expected(np.concatenate([one.probability for one in some]))
            bins = reliability(expected, np.concatenate([one.true for one in some]))
            shown = [f"{e:.2f}: {t:.2f}" for e, t, n in zip(bins.expected, bins.true, bins.enough, strict=True) if n]
            plain, own, best = (
                float(np.mean(scores))
                for scores in zip(*((one.f1(BetaCurve()), one.f1(curve), one.best_f1()) for one in some), strict=True)
            )
            again = [one.drawn_again(curve, rng) for one in some for _ in range(DRAWS)]
            exact = np.mean([one.best_f1() - one.f1(curve) for one in again])
            cells = " | ".join(f"{score:.3f}" for score in (plain, own, best, best - own, exact))
            lines.append(f"| {name} | {seeds} | {len(some)} | {cells} | {', '.join(shown)} |")
    return "\n".join(lines)


def _collect(arguments: argparse.Namespace) -> None:
    arguments.out.mkdir(parents=True, exist_ok=True)
    model = CryoSAM.from_settings(embedded("auto"))
    assert model.rankers is not None
    model.rankers.curve = BetaCurve()
    for name in arguments.layouts:
        shapes, layout = LAYOUTS[name]
        survey = Survey(
            templates=arguments.templates,
            repeats=arguments.repeats,
            snrs=arguments.snr,
            seed=arguments.seed + list(LAYOUTS).index(name),
            shapes=shapes,
            layout=layout,
        )
        for drawn in survey.draw():
            path = arguments.out / f"{name}-{drawn.repeat}-{drawn.snr:g}.npz"
            if not path.exists():
                outcomes = list(search_kinds(model, drawn, layout))
                save_outcomes(path, outcomes)
                print(f"{path}  {len(outcomes)} searches", flush=True)


def _collected(arguments: argparse.Namespace) -> dict[str, list[Outcome]]:
    groups = {
        name: [one for path in sorted(arguments.out.glob(f"{name}-*-*.npz")) for one in read_outcomes(path)]
        for name in arguments.layouts
    }
    missing = [name for name, outcomes in groups.items() if not outcomes]
    if missing:
        raise SystemExit(
            f"{arguments.out}: expected outcomes of {', '.join(arguments.layouts)}, "
            f"found none of {', '.join(missing)}; run collect first, or name fewer --layouts"
        )
    return groups


def _fit(arguments: argparse.Namespace) -> None:
    groups = _collected(arguments)
    curve = fit_curve(list(groups.values()))
    target = arguments.weights or shipped("ranker")
    tensors = load_file(target)
    save_file(tensors | {"curve.coefficients": curve.coefficients}, target)
    a, b, c = curve.coefficients
    print(table(groups, curve))
    print(f"{target}  a {a:.3f}, b {b:.3f}, c {c:.3f}")


def _check(arguments: argparse.Namespace) -> None:
    groups = _collected(arguments)
    curve = BetaCurve()
    curve.coefficients.copy_(load_file(arguments.weights or shipped("ranker"))["curve.coefficients"])
    print(table(groups, curve))


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and collect, fit or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("collect", "fit", "check"))
    parser.add_argument("--templates", type=Path, default=None)
    parser.add_argument("--out", type=Path, required=True, help="of what was collected")
    parser.add_argument("--layouts", nargs="+", choices=list(LAYOUTS), default=list(LAYOUTS))
    parser.add_argument("--snr", type=float, nargs="+", default=NOISES)
    parser.add_argument("--repeats", type=int, default=1, help="data sets of each layout at each noise")
    parser.add_argument("--seed", type=int, default=6401)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--weights", type=Path, default=None, help="default: the package's own")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    {"collect": _collect, "fit": _fit, "check": _check}[arguments.what](arguments)


if __name__ == "__main__":
    main()
