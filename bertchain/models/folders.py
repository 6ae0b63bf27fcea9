"""Folders that hold a model in a form that the scripts do not read, and what to do with them."""

import json
import os
from pathlib import Path
from typing import Any

from bertchain.errors import InputError

INDEX = "model.safetensors.index.json"  # of weights in several files
SETTINGS = (  # small files that are read with a model
    "config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
)
PICKLED = ("pytorch_model*.bin", "*.ckpt", "*.pt", "*.pth")


def check_model_folder(path: str | os.PathLike | None) -> None:
    """Check that a folder is none of the forms that have to be made plain first.

    Raises:
        InputError: for an adapter, pickled weights, a folder of sentence-transformers whose
            transformer lies in a folder of its own, and as `check_json`.
    """
    if not path or not os.path.isdir(path):
        return
    folder = Path(path)
    check_json(folder)
    if (folder / "adapter_config.json").is_file():
        base = read_json(folder / "adapter_config.json").get("base_model_name_or_path", "BASE")
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
    modules = read_json(folder / "modules.json", list)
    paths = [m.get("path", "") for m in modules if isinstance(m, dict)]
    names = [path for path in paths if isinstance(path, str) and Path(path).name == path]
    named = [folder / name for name in (*names, "0_Transformer")]
    return next((p for p in named if (p / "config.json").is_file()), None)


def check_json(folder: Path) -> None:
    """Check that the small files of a model are JSON of the form that libraries expect.

    Raises:
        InputError: naming one that is not, and for weights that would lie outside of the folder.
    """
    for name in SETTINGS:
        if (folder / name).is_file():
            read_json(folder / name)
    index = folder / INDEX
    if index.is_file():
        files = read_json(index).get("weight_map")
        files = [*files.values()] if isinstance(files, dict) else [None]
        wrong = [name for name in files if not isinstance(name, str) or Path(name).name != name]
        if wrong:
            raise InputError(f"{index}: has no weight_map that names files of this folder")


def read_json(path: Path, kind: type = dict) -> Any:
    """Read a JSON file whose content is a mapping (or, as asked, a list).

    Raises:
        InputError: naming the file, if it is something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON; is it cut off, or of another kind?") from error
    if not isinstance(content, kind):
        name = {dict: "mapping", list: "list"}[kind]
        raise InputError(f"{path} holds no {name}; it is not as its library wrote it")
    return content
