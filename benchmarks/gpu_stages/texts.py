"""Text to measure with: docstrings, as they are or joined to longer documents."""

import subprocess
import sys
from pathlib import Path

from filelock import FileLock

ROOT = Path(__file__).resolve().parent.parent.parent


def docstrings(folder: Path) -> Path:
    """Make the data of the quickstart once; returns its folder."""
    data = folder / "data"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".data.lock"):
        if not (data / "test_labels.csv").is_file():
            script = ROOT / "examples" / "make_docstring_data.py"
            subprocess.run([sys.executable, str(script), "--output_dir", str(data)], check=True)
    return data


def table(folder: Path, rows: int, joined: int) -> str:
    """Write a labelled table of so many documents, each of 1 to `joined` docstrings.

    Returns:
        its path.
    """
    import numpy as np
    import pandas as pd

    path = folder / f"texts-{rows}-{joined}.csv"
    if path.is_file():
        return str(path)
    data = docstrings(folder)
    read = pd.concat(pd.read_csv(data / f"{name}.csv") for name in ("train", "unlabelled"))
    texts = (read["title"] + ". " + read["abstract"].fillna("")).to_numpy()
    rng = np.random.default_rng(0)
    counts = rng.integers(1, joined + 1, rows)
    made = [" ".join(rng.choice(texts, count)) for count in counts]
    pd.DataFrame({"text": made, "label": rng.integers(0, 4, rows)}).to_csv(path, index=False)
    return str(path)
