"""Memory and time of one tomogram, against what was counted and measured for the real models."""

from __future__ import annotations

import pytest

from copick_cryosam.compute.estimating import _TILE_BYTES_PER_VOXEL, _flops, _views, estimate
from copick_cryosam.compute.models import NamedModel
from copick_cryosam.config import HALO, override, preset
from copick_cryosam.foundation.catalogue import SAMS, TRANSFORMERS
from copick_cryosam.types import Grid

GRID = Grid((200, 928, 960), 10.0)
LARGE = TRANSFORMERS["dinov2-reg-large"]
MODELS = {
    "encoder": NamedModel(name=LARGE.name, place="x", entry=LARGE),
    "segmenter": NamedModel(name="SAM vit_h", place="x", entry=SAMS["vit_h"]),
}
EMBEDDED = {"encoder": NamedModel(name="embednet"), "segmenter": NamedModel(name="promptnet")}


@pytest.mark.parametrize(
    ("name", "counted"), [("dinov2-large", 1014e9), ("dinov2-base", 303e9), ("dinov2-small", 93e9)]
)
def test_operations_of_transformers_are_those_counted(name: str, counted: float) -> None:
    assert _flops(TRANSFORMERS[name], 37 * 37) == pytest.approx(counted, rel=0.02)


def test_a_tile_is_counted_with_its_context() -> None:
    memory = {}
    for tile in (64, 224):
        settings = override(preset("embedded"), {"encoder": {"tile": tile}})
        memory[tile] = estimate(GRID, 12.0, settings, EMBEDDED)[0]  # type: ignore[index]
    voxels = (224 + 2 * HALO) ** 3 - (64 + 2 * HALO) ** 3
    assert memory[224] - memory[64] == pytest.approx(_TILE_BYTES_PER_VOXEL * voxels)


def test_half_turns_are_counted() -> None:
    seconds = []
    for turns in (1, 2, 4):
        settings = override(preset("embedded"), {"encoder": {"turns": turns}})
        seconds.append(estimate(GRID, 12.0, settings, EMBEDDED)[1])  # type: ignore[index]
    assert seconds[1] > seconds[0]
    assert seconds[2] - seconds[0] == pytest.approx(3 * (seconds[1] - seconds[0]))


def test_planes_that_one_prompt_tells_of_are_counted_once() -> None:
    seconds = {}
    for radius in (6.0, 20.0):
        for slab in (1, 2):
            settings = override(preset("embedded"), {"segmenter": {"slab": slab}, "encoder": {"turns": 1}})
            whole = estimate(GRID, radius, settings, EMBEDDED)[1]  # type: ignore[index]
            none = override(settings, {"segmenter": {"name": "fake"}})
            seconds[radius, slab] = whole - estimate(GRID, radius, none, EMBEDDED)[1]  # type: ignore[index]
    assert seconds[6.0, 2] < 0.7 * seconds[6.0, 1]
    assert seconds[20.0, 2] < 0.7 * seconds[20.0, 1]


def test_operations_of_sam_follow_the_tokens() -> None:
    assert _flops(SAMS["vit_h"], 64 * 64) == 5961e9
    # Counted: 1208 G for 224 x 1024 pixels. The estimate may be larger, not smaller.
    assert 1208e9 <= _flops(SAMS["vit_h"], 14 * 64) < 1.1 * 1208e9


def test_views_have_the_planes_own_shape_unless_padded() -> None:
    assert _views(GRID, None, 14) == [(200, 67 * 69), (928, 15 * 69), (960, 15 * 67)]
    assert _views(GRID, 1024, 16)[0] == (200, 62 * 64)
    assert _views(GRID, 1024, 16, square=True) == [(200, 4096), (928, 4096), (960, 4096)]


def test_embeddings_of_the_paper_s_models_fit_what_was_measured() -> None:
    # Tokens of DINOv2-L in three views take 5.5 GiB, SAM's embeddings in float32 8.2 GiB.
    memory, seconds = estimate(GRID, 12.0, preset("paper"), MODELS)  # type: ignore[misc]
    assert 14 < memory / 2**30 < 35
    # 2088 planes of SAM-H at 54 s on one core
    assert 2088 * 54 < seconds < 4 * 2088 * 54


def test_less_is_less() -> None:
    foundation = preset("foundation")
    whole = estimate(GRID, 12.0, foundation, MODELS)
    half = estimate(Grid((100, 464, 480), 20.0), 6.0, foundation, MODELS)
    small = estimate(
        GRID, 12.0, foundation, {**MODELS, "segmenter": NamedModel(name="SAM vit_b", place="x", entry=SAMS["vit_b"])}
    )
    embedded = estimate(GRID, 12.0, preset("embedded"), EMBEDDED)
    padded = estimate(GRID, 12.0, override(foundation, {"segmenter": {"padding": "square"}}), MODELS)
    assert whole is not None
    for less in (half, small, embedded):
        assert less is not None
        assert less[0] < whole[0]
        assert less[1] < whole[1]
    assert padded is not None
    assert padded[1] > 2 * whole[1]


def test_bf16_is_counted_where_it_is_used() -> None:
    seconds = {}
    for precision in ("fp32", "bf16"):
        nets = {"encoder": {"precision": precision}, "segmenter": {"precision": precision}}
        seconds[precision] = estimate(GRID, 12.0, override(preset("embedded"), nets), EMBEDDED)[1]  # type: ignore[index]
    assert 1.7 < seconds["fp32"] / seconds["bf16"] < 2.8


def test_company_is_counted_where_not_all_compete_at_once() -> None:
    seconds = {}
    for company in (1, 2):
        settings = override(preset("embedded"), {"alignment": {"company": company}})
        seconds[company] = [estimate(GRID, 12.0, settings, EMBEDDED, others=others)[1] for others in (0, 1, 2, 9)]  # type: ignore[index]
    alone = seconds[2][0]
    assert seconds[1][:2] == [alone] * 2
    assert seconds[2][:3] == [alone] * 3
    assert seconds[2][3] - alone == pytest.approx(2 * (seconds[1][3] - alone))
    assert alone < seconds[1][2] == seconds[1][3]
    without = override(preset("embedded"), {"alignment": {"second_look": False}})
    assert estimate(GRID, 12.0, without, EMBEDDED, others=9) == estimate(GRID, 12.0, without, EMBEDDED)


def test_no_estimate_for_models_that_are_not_known() -> None:
    foreign = {**MODELS, "encoder": NamedModel(name="someone/transformer", place="Hugging Face")}
    assert estimate(GRID, 12.0, preset("foundation"), foreign) is None
