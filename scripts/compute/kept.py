"""What OpenVINO has compiled, kept for the next process.

It lies in the user's cache folder as OpenVINO writes it, under names that OpenVINO gives: a hash of the
network with its weights, of the settings, and of its own version and the processor. Nothing of an image is in
it. A file that is not as it was written is removed before OpenVINO sees it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from scripts.errors import InputError
from scripts.files import atomic_write, read_json, sha256, user_cache

logger = logging.getLogger(__name__)

#: Most bytes that are kept: the oldest files go.
MOST_BYTES = 1 << 28

#: The hashes of the files, by their names.
SUMS = "sums.json"


def compile_kept(compile_model: Callable[[dict[str, Any]], Any]) -> Any:
    """Compile a model, or load what was compiled before.

    Args:
        compile_model: OpenVINO's, but for these settings.

    Returns:
        What it gives.
    """
    try:
        place = user_cache() / "openvino"
        place.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=place):
            pass
        _remove_unsound(place)
    except (OSError, RuntimeError) as error:  # no home, or no file can be written there
        logger.debug("nothing that is compiled is kept: %s", error)
        return compile_model({})
    compiled = compile_model({"CACHE_DIR": str(place)})
    try:
        _write_sums(place)
    except (OSError, InputError) as error:
        logger.debug("what was compiled is not kept: %s", error)
    return compiled


def _sums(place: Path) -> dict[str, Any]:
    try:
        return read_json(place / SUMS)
    except InputError:
        return {}


def _remove_unsound(place: Path) -> None:
    """Remove what is not as it was written, and the oldest of too much."""
    sums, total = _sums(place), 0
    for file in sorted(place.glob("*.blob"), key=lambda file: -file.stat().st_mtime):
        total += file.stat().st_size
        if total > MOST_BYTES or sums.get(file.name) != sha256(file):
            file.unlink(missing_ok=True)


def _write_sums(place: Path) -> None:
    """Note the hashes of new files."""
    known, files = _sums(place), {file.name: file for file in place.glob("*.blob")}
    sums = {name: known[name] if name in known else sha256(file) for name, file in files.items()}
    if sums != known:
        with atomic_write(place / SUMS) as temporary:
            temporary.write_text(json.dumps(sums, indent=1) + "\n", encoding="utf-8")
