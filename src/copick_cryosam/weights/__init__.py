"""The weights of the embedded nets, as safetensors inside the package; see MODEL_CARD.md beside them."""

from __future__ import annotations

import hashlib
from importlib.resources import files

import torch
from torch import nn

from copick_cryosam.errors import NotFoundError


def weight_bytes(name: str) -> bytes:
    """The shipped file of a net.

    Raises
    ------
    NotFoundError
        The installed package lacks it.
    """
    path = files(__name__).joinpath(f"{name}.safetensors")
    if not path.is_file():
        raise NotFoundError(
            f"weights of {name}: expected {path}, found nothing", hint="Install copick-cryosam again from its wheel"
        )
    return path.read_bytes()


def weight_hash(name: str) -> str:
    """SHA-256 of the shipped file of a net, 64 hexadecimal digits."""
    return hashlib.sha256(weight_bytes(name)).hexdigest()


def load_weights(name: str, net: nn.Module) -> str:
    """Fill `net` with its shipped weights (stored as float16) and return its signature.

    The signature, name and first 12 digits of the SHA-256, identifies what a feature or mask was made with.
    """
    content = weight_bytes(name)
    net.load_state_dict(float_weights(content))
    return f"{name}-{hashlib.sha256(content).hexdigest()[:12]}"


def float_weights(content: bytes) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors file; those of float16 as float32, as nets compute with them."""
    from safetensors.torch import load

    return {key: value.float() if value.dtype == torch.float16 else value for key, value in load(content).items()}
