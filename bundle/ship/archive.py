"""`python -m bundle fetch` and `store`: DICOM series from an archive, and results back into it, by DICOMweb.

The services are those of DICOM PS3.18: QIDO-RS (10.6) finds the study of a series, WADO-RS (10.4) retrieves
its instances, STOW-RS (10.5) stores. What lies between, a segmentation, is `monai.bundle run` with
`configs/dicom.json`.

Who one is comes from the environment and not from the command line, which other users of a machine can read:
a token in `DICOMWEB_TOKEN`, or a name and a password for the host in `~/.netrc`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import typer
from monai.utils import optional_import
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError

from scripts.dicom.silence import silence_pydicom
from scripts.errors import InputError
from scripts.files import disk_space_for, replace_folder, workshop
from scripts.progress import progress

requests, _ = optional_import("requests")
dicomweb, has_dicomweb = optional_import("dicomweb_client")

#: Tags of the answers, PS3.6.
STUDY_UID, INSTANCES = "0020000D", "00201209"

#: As they were stored, compressed or not.
AS_STORED = (("application/dicom", "*"),)

#: The answer to an instance that is refused while others may be stored.
REFUSED = 409

#: What an archive's answer means for the one who asked.
ADVICE = {
    401: "it asks who you are: put a token into DICOMWEB_TOKEN, or name and password into ~/.netrc",
    403: "it does not let you: ask its administrator for the right to read and to store",
    404: "it has nothing there: compare the URL with the archive's DICOMweb root, such as .../dicom-web",
}


@silence_pydicom()
def fetch(url: str, series: str, output_dir: Path, timeout: float) -> None:
    """Carry out `bundle.cli.fetch`, whose arguments these are."""
    client = _client(url, timeout)
    with _answers(url, "the series"):
        found = client.search_for_series(
            search_filters={"SeriesInstanceUID": series}, fields=["NumberOfSeriesRelatedInstances"]
        )
    if not found:
        raise InputError(f"{_place(url)} holds no series with this SeriesInstanceUID: compare it")
    study, told = _value(found[0], STUDY_UID), str(_value(found[0], INSTANCES))
    expected = int(told) if told.isdecimal() else None
    with workshop(output_dir.parent) as place:
        made = place / "series"
        made.mkdir()
        count = 0
        with disk_space_for(output_dir), _answers(url, "the series"):
            instances = client.iter_series(study, series, media_types=AS_STORED)
            for count, instance in enumerate(progress(instances, "fetching", total=expected), 1):
                instance.save_as(made / f"{count:05}.dcm", enforce_file_format=True)
        if not count or count != (expected or count):
            raise InputError(
                f"{_place(url)} sent {count} of {expected} instances of the series, nothing was kept: "
                "fetch it again"
            )
        replace_folder(made, output_dir)
    typer.echo(f"{count} instances in {output_dir}")


@silence_pydicom()
def store(url: str, paths: list[Path], timeout: float) -> None:
    """Carry out `bundle.cli.store`, whose arguments these are."""
    client = _client(url, timeout)
    files = [file for path in paths for file in (sorted(path.rglob("*.dcm")) if path.is_dir() else [path])]
    if not files:
        raise InputError(f"{', '.join(map(str, paths))}: no .dcm file there to be stored; name other folders")
    instances = {file: _read(file) for file in files}  # all are read before the first is sent
    refused = []
    for file, instance in progress(instances.items(), "storing"):
        with _answers(url, str(file)):
            refused += [f"{file} ({reason})" for reason in _refusals(client, instance)]
    if refused:
        stored = f"{len(files) - len(refused)} of {len(files)} files"
        raise InputError(
            f"{_place(url)} stored {stored} and refused {'; '.join(refused)}: "
            "look up the reason in DICOM PS3.18, table I.2-2, or in the archive's log"
        )
    typer.echo(f"{len(files)} file(s) in {_place(url)}")


def _client(url: str, timeout: float) -> Any:
    if not has_dicomweb:
        raise InputError("fetch and store need dicomweb-client: run pip install -r requirements-dicom.txt")
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise InputError(
            f"the URL is {_place(url)!r}: give the DICOMweb root, such as https://pacs/dicom-web"
        )
    session = requests.Session()
    if token := os.environ.get("DICOMWEB_TOKEN"):
        session.auth = lambda request: request.headers.update(Authorization=f"Bearer {token}") or request
    client = dicomweb.DICOMwebClient(url.rstrip("/"), session, timeout=timeout)
    client.set_http_retry_params(retry=False)
    return client


def _refusals(client: Any, instance: Dataset) -> list[str]:
    """Store an instance, and say why it was refused, if it was: answers 202 and 409 (PS3.18 10.5.3)."""
    try:
        answer = client.store_instances([instance])
    except requests.HTTPError as error:
        if error.response.status_code != REFUSED:
            raise
        try:
            answer = Dataset.from_json(error.response.text)
        except Exception:  # nothing, no JSON, or JSON of another kind
            answer = Dataset()
        if "FailedSOPSequence" not in answer:
            return [f"answer {REFUSED}"]
    failed = answer.get("FailedSOPSequence", ())
    reasons = [item.get("FailureReason") for item in failed]
    return [f"failure reason {each if isinstance(each, int) else 'not told'}" for each in reasons]


@contextmanager
def _answers(url: str, what: str) -> Iterator[None]:
    """Turn what an archive does wrong into one sentence.

    Args:
        url: its DICOMweb root.
        what: what is fetched or stored.
    """
    try:
        yield
    except requests.HTTPError as error:
        status = error.response.status_code
        advice = ADVICE.get(status, "look into its log, and try again")
        raise InputError(f"{_place(url)} answers {status} for {what}; {advice}") from None
    except requests.Timeout:
        raise InputError(
            f"{_place(url)} gave no answer for {what} in time: see whether it is busy, or set --timeout"
        ) from None
    except requests.JSONDecodeError as error:
        raise _no_dicomweb(url, what, error) from None
    except requests.RequestException as error:
        raise InputError(
            f"{_place(url)} cannot be reached for {what} ({type(error).__name__}): see whether it runs, and "
            "whether host, port and certificate are right"
        ) from None
    except (InputError, OSError):
        raise
    except Exception as error:  # whatever an answer makes the libraries raise
        raise _no_dicomweb(url, what, error) from None


def _no_dicomweb(url: str, what: str, error: Exception) -> InputError:
    return InputError(
        f"{_place(url)} does not answer for {what} as DICOMweb asks ({type(error).__name__}): compare "
        "the URL with the archive's DICOMweb root, such as .../dicom-web"
    )


def _place(url: str) -> str:
    """The URL without name and password."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _value(found: dict[str, Any], tag: str) -> Any:
    """The first value of an element in an answer of QIDO-RS; None where there is none."""
    return next(iter(found.get(tag, {}).get("Value", ())), None)


def _read(file: Path) -> Any:
    try:
        return dcmread(file)
    except (InvalidDicomError, OSError) as error:
        raise InputError(f"{file} cannot be read as DICOM: leave it out; nothing was stored") from error
