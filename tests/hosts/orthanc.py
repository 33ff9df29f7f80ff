"""Orthanc, a real archive, with its DICOMweb plugin, on loopback.

`apt-get install --no-install-recommends orthanc orthanc-dicomweb` installs it on Debian.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.hosts.server import free_port

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
STARTS_IN = 30  # seconds

needs_orthanc = pytest.mark.skipif(
    not (shutil.which("Orthanc") and PLUGIN.is_file()), reason="Orthanc is not installed"
)


@contextmanager
def orthanc(folder: Path, **settings: Any) -> Iterator[str]:
    """An archive that runs; its DICOMweb root.

    Args:
        folder: an empty one, for its files.
        settings: more of Orthanc's.
    """
    port = free_port()
    config = {
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "Plugins": [str(PLUGIN)],
        "DicomServerEnabled": False,
        "HttpPort": port,
        "RemoteAccessAllowed": False,
        **settings,
    }
    (folder / "orthanc.json").write_text(json.dumps(config))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(["Orthanc", str(folder / "orthanc.json")], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + STARTS_IN
        while time.monotonic() < deadline and process.poll() is None:
            try:
                requests.get(f"http://127.0.0.1:{port}/system", timeout=5)
                break
            except requests.ConnectionError:
                time.sleep(0.2)
        else:
            pytest.fail(f"Orthanc did not start; its log ends:\n{(folder / 'log').read_text()[-2000:]}")
        yield f"http://127.0.0.1:{port}/dicom-web"
    finally:
        process.terminate()
        process.wait(timeout=30)
