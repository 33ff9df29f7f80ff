"""For all tests: nothing closes what pytest captures with.

What reads TensorBoard's files logs with absl, whose handler closes the stream that it was made with when
MONAI sets the logging anew, unless that stream is `sys.stderr` just then. Within a test it is the capture of
all tests.
"""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from collections.abc import Iterator

import pytest
from absl import logging

from scripts.dicom import silence

#: What is remembered between runs is not remembered beyond the tests; matplotlib keeps its fonts.
_cache = tempfile.TemporaryDirectory(prefix="cache-")
_usual = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
os.environ.setdefault("MPLCONFIGDIR", os.path.join(_usual, "matplotlib"))
os.environ["XDG_CACHE_HOME"] = _cache.name

logging.get_absl_handler().python_handler.stream = sys.__stderr__


@pytest.fixture(autouse=True)
def _heard_again() -> Iterator[None]:
    """A run in this process that an error ended leaves its loader behind, and the silence that it keeps."""
    yield
    if silence._inside:
        gc.collect()
