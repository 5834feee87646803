"""SAM with random weights from the official classes, and the official `SamPredictor`, for tests; no download.

Fresh weights would be a poor test: position embeddings start at zero, and masks and predicted IoUs hardly differ
from prompt to prompt. Here everything that is read is random and large enough to matter.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import nn

from copick_cryosam.foundation.sam_modules import official

PATCH, CHANNELS = 16, 256
VIT_B = {"depth": 12, "width": 768, "heads": 12, "global_layers": (2, 5, 8, 11)}
"""The architecture of SAM ViT-B, for `random_sam`; its defaults are a smaller one."""


@cache
def random_sam(
    img_size: int = 256,
    depth: int = 4,
    width: int = 96,
    heads: int = 3,
    global_layers: tuple[int, ...] = (1, 3),
    window: int = 14,
    seed: int = 0,
) -> Any:
    """An official ``Sam`` in evaluation mode, shared by all who ask for the same: not to be changed.

    The random state of torch is left as it was.
    """
    modeling = official("modeling")
    tokens = img_size // PATCH
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sam = modeling.Sam(
            modeling.ImageEncoderViT(
                depth=depth,
                embed_dim=width,
                img_size=img_size,
                num_heads=heads,
                norm_layer=partial(nn.LayerNorm, eps=1e-6),
                patch_size=PATCH,
                use_rel_pos=True,
                global_attn_indexes=global_layers,
                window_size=window,
                out_chans=CHANNELS,
            ),
            modeling.PromptEncoder(
                embed_dim=CHANNELS,
                image_embedding_size=(tokens, tokens),
                input_image_size=(img_size, img_size),
                mask_in_chans=16,
            ),
            modeling.MaskDecoder(
                transformer=modeling.TwoWayTransformer(depth=2, embedding_dim=CHANNELS, mlp_dim=2048, num_heads=8),
                transformer_dim=CHANNELS,
            ),
            pixel_mean=[123.675, 116.28, 103.53],
            pixel_std=[58.395, 57.12, 57.375],
        )
        enliven(sam)
    return sam.eval().requires_grad_(False)


def enliven(sam: Any) -> None:
    for name, value in sam.image_encoder.named_parameters():
        if "pos_embed" in name or "rel_pos" in name:
            nn.init.normal_(value, std=0.3)
    for head in sam.mask_decoder.output_hypernetworks_mlps:
        nn.init.normal_(head.layers[-1].weight, std=1.5)
    # Random features hardly depend on the prompt; what the click and the mask before add is made louder.
    sam.prompt_encoder.mask_downscaling[-1].weight.data *= 4
    nn.init.normal_(sam.mask_decoder.iou_prediction_head.layers[-1].weight, std=0.1)
    nn.init.constant_(sam.mask_decoder.iou_prediction_head.layers[-1].bias, 0.5)


def predictor(sam: Any) -> Any:
    """The official ``SamPredictor``; prompts and pictures go in already transformed."""
    with _importable():
        return official("predictor").SamPredictor(sam)


@contextmanager
def _importable() -> Iterator[None]:
    """`predictor.py` imports `segment_anything.modeling` by its full name, and torchvision for 8-bit pictures only."""
    package = ModuleType("segment_anything")
    stand_ins: dict[str, ModuleType] = {
        "segment_anything": package,
        "segment_anything.modeling": official("modeling"),
    }
    if find_spec("torchvision") is None:
        functional = ModuleType("torchvision.transforms.functional")
        functional.resize = functional.to_pil_image = _unavailable  # type: ignore[attr-defined]
        stand_ins |= {
            "torchvision": ModuleType("torchvision"),
            "torchvision.transforms": ModuleType("torchvision.transforms"),
            "torchvision.transforms.functional": functional,
        }
    before = {name: sys.modules.get(name) for name in stand_ins}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def _unavailable(*_: object) -> None:
    raise RuntimeError("torchvision is not installed; use set_torch_image and predict_torch")
