"""Folders that hold a model in a form that the scripts do not read, and what to do with them."""

import json
import os
from pathlib import Path

from bertchain.errors import InputError

PICKLED = ("pytorch_model*.bin", "*.ckpt", "*.pt", "*.pth")


def check_model_folder(path: str | os.PathLike | None) -> None:
    """Check that a folder is none of the forms that have to be made plain first.

    Raises:
        InputError: for an adapter, pickled weights, and a folder of sentence-transformers whose
            transformer lies in a folder of its own.
    """
    if not path or not os.path.isdir(path):
        return
    folder = Path(path)
    if (folder / "adapter_config.json").is_file():
        base = _read(folder / "adapter_config.json").get("base_model_name_or_path", "BASE")
        raise InputError(
            f"{folder} is an adapter, not a model; merge it first: PeftModel.from_pretrained("
            f"AutoModel.from_pretrained('{base}'), '{folder}').merge_and_unload()"
            ".save_pretrained('MERGED'), with the tokenizer"
        )
    if (folder / "modules.json").is_file() and not (folder / "config.json").is_file():
        inner = _transformer_of(folder)
        raise InputError(
            f"{folder} is a folder of sentence-transformers, whose encoder lies in a folder of its "
            f"own; give {inner or 'that folder'}"
        )
    if any(folder.glob("*.safetensors")) or any(folder.glob("*.safetensors.index.json")):
        return
    pickled = next((p for pattern in PICKLED for p in sorted(folder.glob(pattern))), None)
    if pickled is not None:
        raise InputError(
            f"{pickled} is not read, since it could run code; make model.safetensors of it: "
            f"python examples/to_safetensors.py {folder}"
        )


def _transformer_of(folder: Path) -> Path | None:
    """The folder of the encoder, by modules.json or by its usual name."""
    modules = _read(folder / "modules.json")
    paths = [m.get("path", "") for m in modules if isinstance(m, dict)]
    named = [folder / path for path in (*paths, "0_Transformer")]
    return next((p for p in named if (p / "config.json").is_file()), None)


def _read(path: Path) -> dict | list:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return {}
