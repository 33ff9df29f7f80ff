"""pydicom and highdicom warn of unusual values by citing them, a patient's name among them.

What speaks DICOMweb logs the addresses that it asks for, which are made of UIDs.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

_LIBRARIES = ("pydicom", "highdicom", "dicomweb_client", "urllib3")
_lock = threading.Lock()
_inside = 0
_undo = ExitStack()


@contextmanager
def silence_pydicom() -> Iterator[None]:
    """Keep these libraries quiet, in warnings and logs; also as `@silence_pydicom()` of a function.

    Blocks may be nested and may run in several threads; what was set before is back after the last of them.
    """
    global _inside
    with _lock:
        if not _inside:
            for logger in map(logging.getLogger, _LIBRARIES):
                _undo.callback(logger.setLevel, logger.level)
                logger.setLevel(logging.CRITICAL + 1)
            _undo.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                _undo.close()
