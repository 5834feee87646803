"""A tiny SAM 2 with random weights from transformers' own classes, for tests; no download.

Fresh weights would be a poor test: position embeddings start at zero, and masks and predicted IoUs hardly differ
from prompt to prompt. Here everything that is read is random and large enough to matter.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn


def tiny_config(img_size: int = 128, video: bool = False) -> Any:
    """Two blocks in the third stage, one of them global, and a quarter of the channels of the smallest SAM 2."""
    import transformers

    backbone = transformers.Sam2HieraDetConfig(
        hidden_size=16,
        image_size=[img_size, img_size],
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[16, 32, 64, 128],
        window_size_per_stage=[8, 4, 8, 4],
        global_attention_blocks=[3],
    )
    vision = transformers.Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=[128, 64, 32, 16],
        backbone_feature_sizes=[[img_size // pixels] * 2 for pixels in (4, 8, 16)],
        fpn_hidden_size=64,
    )
    prompts = transformers.Sam2PromptEncoderConfig(hidden_size=64, image_size=img_size)
    masks = transformers.Sam2MaskDecoderConfig(
        hidden_size=64, mlp_dim=128, num_attention_heads=4, iou_head_hidden_dim=64
    )
    kind = transformers.Sam2VideoConfig if video else transformers.Sam2Config
    return kind(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=masks)


@cache
def random_sam2(img_size: int = 128, seed: int = 0) -> Any:
    """A ``Sam2Model`` in evaluation mode, shared by all who ask for the same: not to be changed.

    The random state of torch is left as it was.
    """
    import transformers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.Sam2Model(tiny_config(img_size))
        enliven(model)
    return model.eval().requires_grad_(False)


def enliven(model: Any) -> None:
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, std=1.2 / module.weight[0].numel() ** 0.5)
            nn.init.normal_(module.bias, std=0.1)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight)
    for name, value in model.named_parameters():
        if name.endswith(("pos_embed", "pos_embed_window", "no_memory_embedding")):
            nn.init.normal_(value, std=0.3)
    positions = model.prompt_encoder.shared_embedding.positional_embedding
    positions.copy_(model.shared_image_embedding.positional_embedding)
