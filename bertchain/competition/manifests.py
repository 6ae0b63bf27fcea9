"""What a run with several members has stored: its manifest, and members that are done."""

import hashlib
import json
import logging
import re
from pathlib import Path
from typing import Any

from bertchain.errors import InputError
from bertchain.runtime.files import hash_file
from bertchain.runtime.outputs import RESULTS

logger = logging.getLogger(__name__)

NAMES = re.compile(r"seed-\d+|fold-\d+|seed-\d+-fold-\d+")  # that `plan_members` gives
TABLES = ("predictions_validation.csv", "predictions_test.csv")


def read_manifest(file: Path) -> dict[str, Any]:
    """Read a manifest; `arguments` and `files` are there in any case.

    Raises:
        InputError: for a file that holds none, or no longer what was written.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not UTF-8
        raise _garbled(file, "is not JSON") from error
    empty: dict[str, Any] = {"arguments": {}, "files": {}}
    content = empty | content if isinstance(content, dict) else {}
    if not all(isinstance(content.get(part), dict) for part in empty):
        raise _garbled(file, "holds no manifest")
    digest = content.pop("digest", None)
    if "step" in content and digest != digest_of(content):  # earlier versions wrote neither
        raise _garbled(file, "is damaged")
    return content


def digest_of(manifest: dict[str, Any]) -> str:
    """Shorten a manifest to 12 hexadecimal digits."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:12]


def read_members(file: Path, key: str) -> list[dict[str, Any]]:
    """Read name, fold and seed of a run's members.

    Names become paths, from which models are read and to which predictions are written; so only
    those that the scripts give are taken.

    Args:
        key: under which the manifest lists them.

    Raises:
        InputError: for anything else.
    """
    rows = read_manifest(file).get(key)
    if not isinstance(rows, list):
        raise _garbled(file, f"lists no {key}")
    found = []
    for row in rows:
        row = row if isinstance(row, dict) else {}
        name, fold, seed = row.get("name"), row.get("fold"), row.get("seed")
        if not (isinstance(name, str) and NAMES.fullmatch(name)):
            raise _garbled(file, f"has a member of the name {name!r}")
        if type(seed) is not int or not (fold is None or type(fold) is int):
            raise _garbled(file, f"gives {name} the fold {fold!r} and the seed {seed!r}")
        found.append({"name": name, "fold": fold, "seed": seed})
    return found


def _garbled(file: Path, what: str) -> InputError:
    return InputError(
        f"{file} {what}: it is not as run_finetune.py wrote it; take the folder anew from where it "
        "was written, or name one of its models"
    )


def is_done(folder: Path) -> bool:
    """Return whether a member's training has ended, and its files are those that it wrote.

    all_results.json is the last file that it writes, and holds a hash of each table of predictions.
    """
    file = folder / RESULTS
    if not file.is_file():
        return False
    try:
        hashes = json.loads(file.read_text(encoding="utf-8")).get("files", {})
        known = [name for name in TABLES if name in hashes]
        changed = [name for name in known if hash_file(folder / name) != hashes[name]]
    except (OSError, ValueError, AttributeError, TypeError):
        changed = [RESULTS]
    if changed:
        logger.warning("%s is not as its training wrote it: trained again", folder / changed[0])
    return not changed
