"""Voxels, pictures and low-resolution logits: each lies where the others say."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from copick_cryosam.foundation.pictures import resize
from copick_cryosam.segmenters.sam_geometry import OUTSIDE, PictureGeometry, WindowReader

CPU = torch.device("cpu")
PLANES = [(928, 960), (960, 928), (200, 960), (63, 130), (1100, 700)]
PADDINGS = ["native", "square"]
WINDOW = 41


def geometry_of(plane: tuple[int, int], padding: str, img_size: int = 1024) -> PictureGeometry:
    return PictureGeometry.of(plane, img_size, img_size, 16, padding)


def places(plane: tuple[int, int]) -> list[tuple[int, int]]:
    """Centre, middles of the edges, and corners."""
    rows, columns = ((0, n // 2, n - 1) for n in plane)
    return [(row, column) for row in rows for column in columns]


def blob(geometry: PictureGeometry, x: float, y: float, width: float) -> torch.Tensor:
    """A Gaussian on the low-resolution grid around a place in SAM's coordinates; `width` in low-resolution logits."""
    rows, columns = (torch.arange(n) for n in geometry.low)
    row, column = ((value + 0.5) / 4 - 0.5 for value in (y, x))
    along_rows, along_columns = (
        torch.exp(-((grid - centre) ** 2) / (2 * width**2)) for grid, centre in ((rows, row), (columns, column))
    )
    return along_rows[:, None] * along_columns[None, :]


def test_sizes():
    native, square = (geometry_of((200, 960), padding) for padding in PADDINGS)
    assert native.picture == square.picture == (213, 1024)
    assert (native.padded, square.padded) == ((224, 1024), (1024, 1024))
    assert (native.low, square.low) == ((56, 256), (256, 256))


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("padding", PADDINGS)
def test_a_voxel_and_its_coordinates_are_the_same_place_in_the_picture(plane, padding):
    """A bright blob in the plane lies in the picture where SAM is told that the voxel is."""
    geometry = geometry_of(plane, padding)
    for row, column in places(plane):
        # Off the rim, where the picture holds the whole blob.
        row, column = min(max(row, 9), plane[0] - 10), min(max(column, 9), plane[1] - 10)
        rows, columns = (torch.arange(n, dtype=torch.float32) for n in plane)
        image = torch.exp(-((rows - row) ** 2) / 8)[:, None] * torch.exp(-((columns - column) ** 2) / 8)[None, :]
        picture = resize(image[None], geometry.picture)[0]
        total = picture.sum()
        x = float((picture.sum(0) * torch.arange(picture.shape[1])).sum() / total)
        y = float((picture.sum(1) * torch.arange(picture.shape[0])).sum() / total)
        told = geometry.to_picture(torch.tensor([[row, column]]))[0]
        assert told.tolist() == pytest.approx([x, y], abs=0.02)


@pytest.mark.parametrize("plane", PLANES)
def test_coordinates_have_half_pixel_centres(plane):
    """SAM adds 0.5 to them; the picture's and the plane's outer edges then coincide."""
    geometry = geometry_of(plane, "native")
    corners = torch.tensor([[-0.5, -0.5], [plane[0] - 0.5, plane[1] - 0.5]])
    height, width = geometry.picture
    assert (geometry.to_picture(corners) + 0.5).flatten().tolist() == pytest.approx([0, 0, width, height], abs=1e-3)


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("padding", PADDINGS)
def test_a_blob_of_logits_is_read_at_the_voxel_that_was_clicked(plane, padding):
    geometry = geometry_of(plane, padding)
    reader = WindowReader(geometry, CPU)
    clicked = torch.tensor(places(plane))
    coordinates = geometry.to_picture(clicked)
    low = torch.stack([blob(geometry, float(x), float(y), 6.0) for x, y in coordinates])
    windows = clicked - WINDOW // 2
    logits = reader.read(low, windows, WINDOW)
    for n, (row, column) in enumerate(clicked.tolist()):
        peak = int(logits[n].argmax())
        found = windows[n] + torch.tensor([peak // WINDOW, peak % WINDOW])
        # Linear interpolation peaks at a low-resolution logit, of which each is up to 4 voxels wide.
        assert (found - clicked[n]).abs().max() <= 2.5
        # Its flanks are true to the voxel: off by one voxel, they would differ by 2 to 8 percent.
        rows, columns = (windows[n, i] + torch.arange(WINDOW) for i in (0, 1))
        steps = [
            (torch.clamp((grid + 0.5) * picture / voxels / 4 - 0.5, 0, last) - (place + 0.5) / 4 + 0.5) / 6
            for grid, picture, voxels, last, place in (
                (rows, geometry.picture[0], plane[0], geometry.low[0] - 1, coordinates[n, 1]),
                (columns, geometry.picture[1], plane[1], geometry.low[1] - 1, coordinates[n, 0]),
            )
        ]
        ideal = torch.exp(-(steps[0] ** 2) / 2)[:, None] * torch.exp(-(steps[1] ** 2) / 2)[None, :]
        inside = logits[n] != OUTSIDE
        assert inside[WINDOW // 2, WINDOW // 2]
        assert (logits[n] - ideal)[inside].abs().max() < 0.009
        assert bool(inside.all()) == (0 < row < plane[0] - 1 and 0 < column < plane[1] - 1)


@pytest.mark.parametrize(("plane", "img_size"), [((92, 96), 256), ((20, 96), 256), ((61, 33), 256), ((300, 280), 256)])
def test_windows_are_cut_from_what_the_official_postprocessing_makes(official_sam, plane, img_size):
    sam = official_sam.random_sam(img_size)
    geometry = geometry_of(plane, "square", img_size)
    low = torch.randn((2, *geometry.low), generator=torch.Generator().manual_seed(0))
    expected = sam.postprocess_masks(low[:, None], geometry.picture, plane)[:, 0]
    windows = torch.tensor([[3, 5], [plane[0] - 30, plane[1] - 25]])
    found = WindowReader(geometry, CPU).read(low, windows, WINDOW)
    for n in range(2):
        for i, row in enumerate(range(int(windows[n, 0]), int(windows[n, 0]) + WINDOW)):
            columns = torch.arange(WINDOW) + windows[n, 1]
            inside = (columns >= 0) & (columns < plane[1]) & (0 <= row < plane[0])
            assert (found[n, i][~inside] == OUTSIDE).all()
            if inside.any():
                torch.testing.assert_close(found[n, i][inside], expected[n, row, columns[inside]], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("plane", "rows_that_differ"), [((213, 1024), 0), ((224, 1024), 2), ((223, 1024), 1)])
def test_native_reads_as_square_but_for_the_last_pixels_before_the_padding(plane, rows_that_differ):
    """One voxel is one pixel here. Only a picture that fills its last token reads the logits beyond it."""
    native, square = (geometry_of(plane, padding) for padding in PADDINGS)
    low = torch.randn((1, *square.low), generator=torch.Generator().manual_seed(0))
    window = torch.tensor([[plane[0] - WINDOW, 500]])
    cut = WindowReader(native, CPU).read(low[:, : native.low[0], : native.low[1]], window, WINDOW)
    whole = WindowReader(square, CPU).read(low, window, WINDOW)
    kept = WINDOW - rows_that_differ
    torch.testing.assert_close(cut[:, :kept], whole[:, :kept], atol=1e-6, rtol=0)
    if rows_that_differ:
        assert (cut[:, kept:] - whole[:, kept:]).abs().amax(2).min() > 0.01
        # What native repeats instead is its last row of logits.
        extended = low.clone()
        extended[:, native.low[0] :] = low[:, native.low[0] - 1 : native.low[0]]
        torch.testing.assert_close(cut, WindowReader(square, CPU).read(extended, window, WINDOW), atol=1e-6, rtol=0)


def test_padding_is_not_inside():
    geometry = geometry_of((200, 960), "square")
    inside = geometry.inside(CPU)
    rows, columns = inside.any(1).sum(), inside.any(0).sum()
    # 213 pixels: the centre of logit 52 lies at 210, that of logit 53 at 214.
    assert (int(rows), int(columns)) == (53, 256)
    assert inside[:53].all()


def test_boxes_enclose_the_mask_and_stop_at_the_picture():
    geometry = geometry_of((202, 960), "square")
    masks = torch.zeros((3, *geometry.low), dtype=torch.bool)
    masks[0, 10:20, 30] = True
    masks[0, 15, 28:31] = True
    masks[1, 53, 255] = True
    boxes, some = geometry.boxes(masks)
    assert some.tolist() == [True, True, False]
    assert (boxes[0] + 0.5).tolist() == [112, 40, 124, 80]
    assert (boxes[1] + 0.5).tolist() == [1020, 212, 1024, 215]


def test_a_blob_in_a_plane_gets_a_box_around_it():
    """From the plane to the picture to the mask before to the box: 10 voxels stay 10 voxels."""
    plane = (200, 960)
    geometry = geometry_of(plane, "native")
    image = torch.zeros(plane)
    image[50:60, 700:710] = 1
    picture = resize(image[None], geometry.picture)
    padded = F.pad(picture, (0, 0, 0, geometry.padded[0] - geometry.picture[0]))
    boxes, _ = geometry.boxes(F.avg_pool2d(padded, 4) > 0.4)
    scale = geometry.picture[0] / plane[0]
    expected = [700 * 1024 / 960, 50 * scale, 710 * 1024 / 960, 60 * scale]
    assert (boxes[0] + 0.5).tolist() == pytest.approx(expected, abs=2.5)
