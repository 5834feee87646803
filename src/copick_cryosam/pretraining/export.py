"""Write a trained net as it ships: float16 safetensors of the averaged weights.

python -m copick_cryosam.pretraining.export embednet runs/embednet/checkpoint.pt
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file

import copick_cryosam.weights


def export(checkpoint: Path, target: Path) -> None:
    """Take the exponential average out of a training checkpoint; floats become float16, counters stay."""
    state = torch.load(checkpoint, weights_only=True, map_location="cpu")["average"]
    tensors = {
        key: (value.half() if value.dtype.is_floating_point else value).contiguous() for key, value in state.items()
    }
    save_file(tensors, target)


def main() -> None:
    """Parse the command line and export."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("net", choices=("embednet", "promptnet"))
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--out", type=Path, default=None, help="default: the package's own weights")
    arguments = parser.parse_args()
    target = arguments.out or Path(copick_cryosam.weights.__file__).with_name(f"{arguments.net}.safetensors")
    export(arguments.checkpoint, target)
    print(f"{target}  {target.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
