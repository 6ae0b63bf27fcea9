"""Make model.safetensors of a folder's pickled weights, which could run code when they are read.

    python examples/to_safetensors.py FOLDER

Reads pytorch_model*.bin (else .ckpt, .pt, .pth) with torch.load(weights_only=True), which runs no
code, and leaves the file. A training state gives the weights that lie in it as state_dict.
"""

import argparse
import pickle
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from safetensors.torch import save_file
from torch import Tensor

from bertchain import cli
from bertchain.errors import InputError
from bertchain.models.folders import PICKLED
from bertchain.runtime.files import atomic_write

INSIDE = ("state_dict", "model_state_dict", "model", "module")  # where a training state has them


def main() -> None:
    """Write model.safetensors."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    target = folder / "model.safetensors"
    if target.exists():
        raise InputError(f"{target} is there already")
    files = next((f for f in (sorted(folder.glob(p)) for p in PICKLED) if f), [])
    if not files:
        raise InputError(f"{folder}: holds none of {', '.join(PICKLED)}")
    weights = {name: value for file in files for name, value in read(file).items()}
    with atomic_write(target) as temporary:
        save_file(weights, temporary, metadata={"format": "pt"})
    print(f"{target}: {len(weights)} tensors")


def read(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a pickled file by name; those that share memory are copied.

    Raises:
        InputError: for a file that holds more than tensors and plain values, or no tensors.
    """
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise InputError(
            f"{path} cannot be read without running its code: {str(error).splitlines()[0]}"
        ) from error
    for name in INSIDE:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    tensors = content.items() if isinstance(content, dict) else ()
    found = {n: v.clone().contiguous() for n, v in tensors if isinstance(v, Tensor)}
    if not found:
        raise InputError(f"{path} holds no weights by name")
    return found


if __name__ == "__main__":
    cli.run_script(main)
