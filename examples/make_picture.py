"""The README's picture, from what `make demo` leaves in its folder.

python examples/make_picture.py demo examples/one-click.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import copick
import matplotlib
import numpy as np
import zarr
from scipy.ndimage import gaussian_filter

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SPACING = 10.0


def main(folder: Path, target: Path) -> None:
    """Three panels: the click, what it found around it, and in another tomogram."""
    root = copick.from_file(str(folder / "config.json"))
    radius = root.get_object("chaperone").radius / SPACING
    seed = root.get_run("TS_001").get_picks("chaperone", user_id="curator")[0].numpy()[0][0] / SPACING
    level = round(seed[2])
    figure, axes = plt.subplots(1, 3, figsize=(12, 4.4))
    titles = (
        "one click in one tomogram ...",
        "... gives every particle like it, with its mask ...",
        "... in all of them",
    )
    for axis, run_name, picked, title in zip(
        axes, ("TS_001", "TS_001", "TS_002"), (False, True, True), titles, strict=True
    ):
        run = root.get_run(run_name)
        volume = zarr.open(run.get_voxel_spacing(SPACING).get_tomograms("wbp")[0].zarr(), mode="r")["0"]
        image = gaussian_filter(np.asarray(volume[level - 2 : level + 3], dtype=np.float32).mean(axis=0), 0.8)
        low, high = np.percentile(image, [0.5, 99.5])
        axis.imshow(image, cmap="gray", vmin=low, vmax=high)
        axis.set_title(title, fontsize=12)
        axis.set_axis_off()
        axis.set_autoscale_on(False)
        if not picked:
            axis.plot(seed[0], seed[1], "+", color="#ffd60a", markersize=18, markeredgewidth=3)
            continue
        masks = run.get_segmentations(name="chaperone", user_id="cryosam", is_instance=True, voxel_size=SPACING)[0]
        labels = np.asarray(zarr.open(masks.zarr(), mode="r")["0"][level])
        for label in np.unique(labels[labels > 0]):
            axis.contourf(labels == label, [0.5, 1.5], colors=["#0a84ff"], alpha=0.35)
        for x, y, z in run.get_picks("chaperone", user_id="cryosam")[0].numpy()[0] / SPACING:
            if abs(z - level) < radius:
                axis.add_patch(plt.Circle((x, y), radius, fill=False, color="#0a84ff", linewidth=1.5))
        bar = 200 / SPACING
        axis.plot([6, 6 + bar], [image.shape[0] - 8] * 2, color="white", linewidth=4)
        axis.text(6 + bar / 2, image.shape[0] - 12, "20 nm", color="white", ha="center", fontsize=10, weight="bold")
    figure.tight_layout()
    figure.savefig(target, dpi=80)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
