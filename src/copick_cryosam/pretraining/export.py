"""Write a trained net as it ships: float16 safetensors of the averaged weights.

python -m copick_cryosam.pretraining.export embednet runs/embednet/checkpoint.pt

Several checkpoints of trainings that went on from the same weights are averaged: they lie in one basin, and their mean
is often better than each (model soups, Wortsman et al., ICML 2022, arXiv:2203.05482).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

import copick_cryosam.weights


def shipped(net: str) -> Path:
    """Where the package keeps the weights of a net."""
    return Path(copick_cryosam.weights.__file__).with_name(f"{net}.safetensors")


def save_net(net: nn.Module, target: Path) -> None:
    """Write a net's weights as they are."""
    save_file({key: value.contiguous() for key, value in net.state_dict().items()}, target)


def export(checkpoints: Sequence[Path], target: Path) -> None:
    """Take the exponential averages out of training checkpoints, and their mean; floats become float16, counters stay.

    Parameters
    ----------
    checkpoints : at least one; counters are those of the first
    """
    states = [torch.load(path, weights_only=True, map_location="cpu")["average"] for path in checkpoints]
    tensors = {}
    for key, value in states[0].items():
        if value.dtype.is_floating_point:
            value = torch.stack([state[key] for state in states]).mean(dim=0).half()
        tensors[key] = value.contiguous()
    save_file(tensors, target)


def main() -> None:
    """Parse the command line and export."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("net", choices=("embednet", "promptnet"))
    parser.add_argument("checkpoints", type=Path, nargs="+", metavar="checkpoint")
    parser.add_argument("--out", type=Path, default=None, help="default: the package's own weights")
    arguments = parser.parse_args()
    target = arguments.out or shipped(arguments.net)
    export(arguments.checkpoints, target)
    print(f"{target}  {target.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
