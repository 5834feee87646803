"""Vision transformers on planes: the right tokens, where they lie, and what batches and precision do to them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import settings as effort
from hypothesis import strategies as st

from copick_cryosam.config import EncoderSettings, override, preset
from copick_cryosam.encoders import load_encoder
from copick_cryosam.encoders.transformer import TransformerTrunk
from copick_cryosam.encoders.vit import PlaneEncoder, SamTokens
from copick_cryosam.errors import DeviceError, InputError, NotFoundError
from copick_cryosam.foundation.pictures import Intensities
from copick_cryosam.foundation.sam_trunk import SamTrunk
from copick_cryosam.foundation.transformer import LoadedTransformer, load_transformer
from copick_cryosam.pipeline import CryoSAM

CPU = torch.device("cpu")
KINDS = ("vit", "dinov2", "dinov2_with_registers", "dinov3_vit")
PATCHES = {"vit": 16, "dinov2": 14, "dinov2_with_registers": 14, "dinov3_vit": 16}
PREFIXES = {"vit": 1, "dinov2": 1, "dinov2_with_registers": 5, "dinov3_vit": 4}
SHAPE = (9, 45, 66)


pytestmark = pytest.mark.usefixtures("one_thread")


def noise(shape=SHAPE, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def plane_of(extent, axis) -> tuple[int, int]:
    height, width = (n for other, n in enumerate(extent) if other != axis)
    return height, width


def by_transformers(model, kind, picture) -> torch.Tensor:
    """Tokens (h, w, C) of one picture (H, W) of values 0 to 1, as a user of transformers would get them."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    colours = (picture.repeat(3, 1, 1) - mean[:, None, None]) / std[:, None, None]
    options = {"interpolate_pos_encoding": True} if kind == "vit" else {}
    with torch.inference_mode():
        found = model(colours[None], **options).last_hidden_state[0]
    height, width = (side // PATCHES[kind] for side in picture.shape)
    return found[PREFIXES[kind] :].reshape(height, width, -1)


class MeanTrunk:
    """A stand-in without weights: of every patch its mean and a constant."""

    channels = 2

    def __init__(self, patch=14):
        self.patch = patch
        self.calls: list[int] = []

    def picture_shape(self, plane, longest_side):
        height, width = (max(1, round(side / self.patch)) * self.patch for side in plane)
        return height, width

    def stride(self, plane, picture):
        height, width = (n * self.patch / p for n, p in zip(plane, picture, strict=True))
        return height, width

    def encode(self, pictures):
        self.calls.append(len(pictures))
        mean = F.avg_pool2d(pictures, self.patch)
        return torch.stack([mean, torch.full_like(mean, 0.5)], dim=-1)


def stand_in(trunk=None, **settings) -> PlaneEncoder:
    return PlaneEncoder("mean", "mean-0", trunk or MeanTrunk(), EncoderSettings(name="fake", **settings), CPU)


# --- the tokens -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_those_of_transformers_plane_by_plane(kind, tiny_transformers):
    from transformers import AutoModel

    model = AutoModel.from_pretrained(tiny_transformers[kind], attn_implementation="eager").eval()
    volume, patch = noise(), PATCHES[kind]
    trunk = TransformerTrunk(load_transformer(str(tiny_transformers[kind])), CPU, "fp32", False)
    features = load_encoder(EncoderSettings(name=str(tiny_transformers[kind]), batch=4), CPU).encode(volume)
    intensities = Intensities.of(volume)
    for axis in range(3):
        height, width = plane_of(SHAPE, axis)
        size = max(1, round(height / patch)) * patch, max(1, round(width / patch)) * patch
        pictures = intensities.to_unit(torch.from_numpy(np.moveaxis(volume, axis, 0).copy()))
        pictures = F.interpolate(pictures[:, None], size=size, mode="bilinear", antialias=True)[:, 0]
        expected = torch.stack([by_transformers(model, kind, picture) for picture in pictures])
        assert expected.shape == (SHAPE[axis], size[0] // patch, size[1] // patch, 32)
        torch.testing.assert_close(trunk.encode(pictures), expected, atol=1e-5, rtol=0)
        kept = features.views[axis].tokens
        assert kept.dtype == torch.float16
        torch.testing.assert_close(kept.float(), expected, atol=4e-3, rtol=0)


def test_a_real_architecture_at_one_plane():
    """DINOv2 ViT-S/14 with registers, random weights, at a plane of another aspect than it was trained at."""
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    torch.manual_seed(0)
    config = Dinov2WithRegistersConfig(hidden_size=384, num_attention_heads=6, image_size=518, patch_size=14)
    model = Dinov2WithRegistersModel(config).eval()
    loaded = LoadedTransformer(model=model, name="s", signature="s-0", patch=14, prefix=5, channels=384)
    picture = torch.rand(70, 126)
    found = TransformerTrunk(loaded, CPU, "auto", False).encode(picture[None])
    expected = by_transformers(model, "dinov2_with_registers", picture)
    assert found.shape == (1, 5, 9, 384)
    torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_stays_near_fp32(kind, tiny_transformers):
    loaded = load_transformer(str(tiny_transformers[kind]))
    pictures = torch.rand(3, PATCHES[kind] * 4, PATCHES[kind] * 5)
    exact, short = (TransformerTrunk(loaded, CPU, precision, False).encode(pictures) for precision in ("fp32", "bf16"))
    assert short.dtype == torch.float32
    assert not torch.equal(exact, short)
    assert F.cosine_similarity(exact, short, dim=-1).min() > 0.999
    assert torch.equal(TransformerTrunk(loaded, CPU, "auto", False).encode(pictures), exact)


def test_sam_tokens_are_its_trunk_s_on_planes_scaled_to_what_it_was_trained_at(official_sam):
    trunk = SamTrunk(official_sam.random_sam(), CPU)
    volume = noise((5, 24, 40))
    features = PlaneEncoder("sam", "sam-0", SamTokens(trunk), EncoderSettings(name="sam"), CPU).encode(volume)
    pictures = Intensities.of(volume).to_unit(torch.from_numpy(volume))
    pictures = F.interpolate(pictures[:, None], size=(154, 256), mode="bilinear")[:, 0]
    expected = trunk.encode(pictures)
    assert expected.shape == (5, 256, 10, 16)
    found = features.views[0].tokens
    torch.testing.assert_close(found.float(), expected.permute(0, 2, 3, 1), atol=4e-3, rtol=1e-3)
    # 24 voxels are 154 pixels: a token is 16 x 24 / 154 voxels, and the tenth hangs over
    assert SamTokens(trunk).stride((24, 40), (154, 256)) == (16 * 24 / 154, 2.5)


# --- pictures ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plane", "longest_side", "expected"),
    [
        ((630, 630), None, (630, 630)),
        ((928, 960), None, (924, 966)),
        ((200, 960), None, (196, 966)),
        ((5, 100), None, (14, 98)),
        ((6, 3), None, (14, 14)),
        ((200, 960), 518, (112, 518)),
        ((50, 100), 280, (140, 280)),
    ],
)
def test_planes_keep_their_aspect_in_whole_patches(plane, longest_side, expected, tiny_transformers):
    trunk = TransformerTrunk(load_transformer(str(tiny_transformers["dinov2"])), CPU, "fp32", False)
    assert trunk.picture_shape(plane, longest_side) == expected
    assert trunk.stride(plane, expected) == tuple(14 * n / p for n, p in zip(plane, expected, strict=True))


def test_more_pixels_per_voxel_make_finer_tokens(tiny_transformers):
    name = str(tiny_transformers["dinov2"])
    coarse = load_encoder(EncoderSettings(name=name), CPU).encode(noise())
    fine = load_encoder(EncoderSettings(name=name, longest_side=132), CPU).encode(noise())
    assert coarse.views[0].tokens.shape == (9, 3, 5, 32)
    assert fine.views[0].tokens.shape == (9, 6, 9, 32)


# --- where things are -------------------------------------------------------------------------


def blobs(shape, centres, width) -> np.ndarray:
    volume = np.zeros(shape, dtype=np.float32)
    for centre in centres:
        parts = [np.exp(-((np.arange(n) - c) ** 2) / (2 * width**2)) for n, c in zip(shape, centre, strict=True)]
        volume = np.maximum(volume, np.einsum("z,y,x->zyx", *parts).astype(np.float32))
    return volume


def highest_near(similarity, centre, reach) -> np.ndarray:
    start = [max(c - reach, 0) for c in centre]
    window = similarity[tuple(slice(s, c + reach + 1) for s, c in zip(start, centre, strict=True))]
    best = np.argwhere(window == window.max()) + start
    return best[np.linalg.norm(best - centre, axis=1).argmin()]


def test_tokens_lie_where_their_patches_are():
    """Strides down and across that differ a lot, 20 and 12.5 voxels to a token: as torch interpolates pictures."""
    shape = (20, 25, 61)
    for axis, view in enumerate(stand_in().encode(noise(shape)).views):
        tokens = view.tokens.float().permute(0, 3, 1, 2)
        expected = F.interpolate(tokens, size=plane_of(shape, axis), mode="bilinear", align_corners=False)
        torch.testing.assert_close(view.rows @ tokens @ view.columns.T, expected, atol=1e-4, rtol=0)


def assert_found(shape, centres, tolerance=4):
    """Half a token is 7 voxels and more, and each axis is known better from the views that look along it."""
    features = stand_in(batch=64, stride=1).encode(blobs(shape, centres, 8.0))
    similarity = features.similarity(np.array([1, 0] * 3, dtype=np.float32))
    for centre in centres:
        off = np.abs(highest_near(similarity, centre, 21) - centre)
        assert off.max() <= tolerance, (centre, off)


def test_blobs_are_where_they_are_in_a_wide_plane():
    """In the middle, at the edges and in the corners of a plane of 928 x 960; the y and x planes are narrow strips."""
    ends = [(4, 464, 923), (4, 480, 955)]
    assert_found((6, 928, 960), [(3, y, x) for y in ends[0] for x in ends[1]], tolerance=7)


@pytest.mark.parametrize("shape", [(61, 104, 150), (150, 61, 104), (104, 150, 47)])
def test_blobs_are_where_they_are_in_uneven_volumes(shape):
    middle = tuple(n // 2 for n in shape)
    assert_found(shape, [middle])
    assert_found(shape, [(4, 5, 4), tuple(n - 5 for n in shape)])
    assert_found(shape, [(4, middle[1], shape[2] - 4), (shape[0] - 6, 6, 3)])


@effort(max_examples=15, deadline=None)
@given(st.tuples(*[st.integers(20, 70)] * 3), st.tuples(*[st.floats(0, 1)] * 3))
@example((64, 60, 64), (0.0, 0.55, 0.02))
def test_a_blob_is_where_it_is_anywhere(shape, part):
    """Between two tokens, at the ends of the other axes, the in-plane views leave up to half a token of 17."""
    assert_found(shape, [tuple(round(p * (n - 1)) for p, n in zip(part, shape, strict=True))], tolerance=9)


# --- batches, progress, memory ----------------------------------------------------------------


def test_progress_counts_planes():
    told: list[tuple[str, int, int]] = []
    stand_in(batch=4).encode(noise((3, 10, 6)), progress=lambda *step: told.append(step))
    assert told == [("encode", done, 19) for done in range(1, 20)]


def test_batches_make_no_difference(tiny_transformers):
    one, all_at_once = (
        load_encoder(EncoderSettings(name=str(tiny_transformers["dinov2"]), batch=batch), CPU).encode(noise())
        for batch in (4, 64)
    )
    for a, b in zip(one.views, all_at_once.views, strict=True):
        torch.testing.assert_close(a.tokens, b.tokens, atol=2e-3, rtol=0)


class ShortOfMemory(MeanTrunk):
    """Has room for so many pictures."""

    def __init__(self, room):
        super().__init__()
        self.room = room

    def encode(self, pictures):
        if len(pictures) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().encode(pictures)


def test_batches_are_halved_once_when_memory_runs_out():
    expected = stand_in(batch=8).encode(noise())
    trunk = ShortOfMemory(room=4)
    found = stand_in(trunk, batch=8).encode(noise())
    for a, b in zip(found.views, expected.views, strict=True):
        assert torch.equal(a.tokens, b.tokens)
    assert max(trunk.calls) == 4
    with pytest.raises(DeviceError, match=r"batch of 4 planes.*encoder\.batch"):
        stand_in(ShortOfMemory(room=3), batch=8).encode(noise())


def test_compiled_trunks_see_batches_of_one_size():
    trunk = MeanTrunk()
    found = stand_in(trunk, batch=4, compile=True).encode(noise())
    assert set(trunk.calls) == {4}
    for a, b in zip(found.views, stand_in(batch=4).encode(noise()).views, strict=True):
        assert torch.equal(a.tokens, b.tokens)


def test_the_model_is_compiled_for_fixed_shapes(tiny_transformers, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "compile", lambda model, **options: asked.append(options) or model)
    load_encoder(EncoderSettings(name=str(tiny_transformers["vit"]), compile=True), CPU)
    assert asked == [{"dynamic": False}]


def test_values_beyond_float16_stay_finite():
    class Wild(MeanTrunk):
        def encode(self, pictures):
            return 1e6 * (super().encode(pictures) - 0.4)

    features = stand_in(Wild()).encode(noise())
    assert all(torch.isfinite(view.tokens).all() for view in features.views)
    assert np.isfinite(features.similarity(np.ones(6, dtype=np.float32))).all()


def test_the_volume_may_be_read_only_and_of_another_layout():
    expected = stand_in().encode(noise())
    odd = np.asfortranarray(noise().astype(np.float64))
    odd.setflags(write=False)
    for a, b in zip(stand_in().encode(odd).views, expected.views, strict=True):
        torch.testing.assert_close(a.tokens, b.tokens, atol=1e-3, rtol=0)


# --- whitening as a setting -------------------------------------------------------------------


@pytest.mark.parametrize("whitening", ["none", "mean", "full"])
def test_each_view_is_whitened_as_asked(whitening, tiny_transformers):
    name = str(tiny_transformers["dinov2"])
    features = load_encoder(EncoderSettings(name=name, whitening=whitening), CPU).encode(noise((40, 45, 66)))
    for view in features.views:
        tokens = view.tokens.float().reshape(-1, 32)
        covariance = tokens.T.cov()
        is_centred = bool(tokens.mean(0).abs().max() < 2e-3)
        is_unit = bool((covariance - torch.eye(32)).abs().max() < 0.15)
        assert (is_centred, is_unit) == (whitening != "none", whitening == "full")


# --- in the pipeline ----------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["exhaustive", "hierarchical"])
def test_the_pipeline_picks_with_tokens(strategy, tiny_transformers):
    centres, radius = [(14, 16, 18), (16, 44, 40)], 7.0
    volume = noise((32, 60, 58)) * np.float32(0.3)
    for centre in centres:
        offsets = np.indices(volume.shape) - np.array(centre)[:, None, None, None]
        volume += ((offsets**2).sum(axis=0) <= radius**2).astype(np.float32)
    settings = override(
        preset("fake"),
        {
            "encoder": {"name": str(tiny_transformers["dinov2"]), "longest_side": 256, "whitening": "mean"},
            "matching": {"strategy": strategy, "ratios": (4, 2)},
            "device": "cpu",
        },
    )
    found = CryoSAM.from_settings(settings).pick(volume, [centres[0]], radius)
    picked = np.array([one.centroid_zyx for one in found[:2]])
    for centre in centres:
        assert np.linalg.norm(picked - centre, axis=1).min() <= 3


# --- choosing an encoder ----------------------------------------------------------------------


def test_encoders_are_recognised_by_short_name_and_folder(tiny_transformers, tmp_path, monkeypatch):
    (tmp_path / "dinov2-small").symlink_to(tiny_transformers["dinov2"], target_is_directory=True)
    monkeypatch.setenv("CRYOSAM_CHECKPOINTS", str(tmp_path))
    short = load_encoder(EncoderSettings(name="dinov2-small"), CPU)
    full = load_encoder(EncoderSettings(name="facebook/dinov2-small"), CPU)
    folder = load_encoder(EncoderSettings(name=str(tiny_transformers["dinov2"])), CPU)
    assert short.name == full.name == "dinov2-small"
    assert short.signature == full.signature
    assert folder.name == "dinov2"
    assert folder.signature.removeprefix("dinov2-") == short.signature.removeprefix("dinov2-small-")
    monkeypatch.chdir(tiny_transformers["vit"].parent)
    assert load_encoder(EncoderSettings(name="vit"), CPU).name == "vit"


def test_unknown_encoders_are_refused_with_what_is_known():
    with pytest.raises(InputError, match=r"expected one of embednet, fake, sam, dino-small.*folder, found 'dino'"):
        load_encoder(EncoderSettings(name="dino"), CPU)
    with pytest.raises(NotFoundError, match="expected the folder /no/such/place"):
        load_encoder(EncoderSettings(name="/no/such/place"), CPU)


def test_sam_is_loaded_from_its_checkpoint(tmp_path):
    from copick_cryosam.foundation.sam_modules import official

    with torch.device("meta"):
        sam = official("build_sam").sam_model_registry["vit_b"]()
    path = tmp_path / "weights.pth"
    # one zero repeated: a small file
    torch.save({key: torch.zeros(()).expand(value.shape) for key, value in sam.state_dict().items()}, path)
    settings = EncoderSettings(name="sam", checkpoint=str(path))
    encoder = load_encoder(settings, CPU)
    assert encoder.name == "sam"
    assert encoder.signature.startswith("sam-vit_b-")
    with pytest.raises(InputError, match=r"encoder\.longest_side: expected at most 1024, found 2048"):
        load_encoder(settings.model_copy(update={"longest_side": 2048}), CPU)
