"""Series come whole from an archive or not at all; whatever it answers, the user reads one sentence.

The archive is a server on loopback that answers as each test says. What a real one answers, tests/hosts asks
Orthanc.
"""

from __future__ import annotations

import io
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, FileMetaDataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

from tests.commands import workbench

STUDY, SERIES = "1.2.3", "1.2.3.4"
BOUNDARY = "part"

#: (status, headers, body)
Answer = tuple[int, dict[str, str], bytes]


def instance(number: int) -> Dataset:
    """A DICOM image of 2 x 2 pixels."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = MRImageStorage, f"{SERIES}.{number}"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = STUDY, SERIES
    dataset.PatientName, dataset.InstanceNumber = "Secret^Name", number
    dataset.set_pixel_data(np.full((2, 2), number, np.uint16), "MONOCHROME2", 12, generate_instance_uid=False)
    return dataset


def encoded(dataset: Dataset) -> bytes:
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def search_result(count: int | None) -> Answer:
    """What QIDO-RS answers for the series, with the number of its instances."""
    found = {"0020000D": {"vr": "UI", "Value": [STUDY]}}
    if count is not None:
        found["00201209"] = {"vr": "IS", "Value": [count]}
    return 200, {"Content-Type": "application/dicom+json"}, json.dumps([found]).encode()


def parts(*datasets: Dataset) -> Answer:
    """What WADO-RS answers: the instances."""
    content = b"".join(
        f"--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode() + encoded(dataset) + b"\r\n"
        for dataset in datasets
    )
    kind = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'
    return 200, {"Content-Type": kind}, content + f"--{BOUNDARY}--".encode()


@contextmanager
def archive(answer: Callable[[str, str, bytes], Answer]) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A server that gives `answer(method, path, body)`.

    Yields:
        Its DICOMweb root, and the headers of each request so far.
    """
    headers: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def respond(self) -> None:
            headers.append(dict(self.headers))
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, fields, content = answer(self.command, self.path, body)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **fields}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = respond

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/dicom-web", headers
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def fetch(url: str, folder: Path, *options: object) -> str:
    return workbench("fetch", url, SERIES, "--output_dir", folder, *options)


def serving(retrieved: Answer, count: int | None) -> Callable[[str, str, bytes], Answer]:
    """Answers to the search and to the retrieval of the series."""
    return lambda method, path, body: search_result(count) if "?" in path else retrieved


@pytest.mark.parametrize("count", [3, None])
def test_series_is_fetched(tmp_path: Path, count: int | None) -> None:
    with archive(serving(parts(*map(instance, range(3))), count)) as (url, _):
        assert f"3 instances in {tmp_path}/new/series\n" in fetch(url, tmp_path / "new" / "series")
    pixels = {file.name: dcmread(file).pixel_array[0, 0] for file in (tmp_path / "new" / "series").iterdir()}
    assert pixels == {"00001.dcm": 0, "00002.dcm": 1, "00003.dcm": 2}
    assert list((tmp_path / "new").iterdir()) == [tmp_path / "new" / "series"]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((401, {}, b""), "answers 401 for the series; it asks who you are: put a token into DICOMWEB_TOKEN"),
        ((403, {}, b""), "answers 403 for the series; it does not let you"),
        ((404, {}, b""), "answers 404 for the series; it has nothing there: compare the URL"),
        ((500, {}, b""), "answers 500 for the series; look into its log"),
        ((200, {"Content-Type": "text/html"}, b"<html>"), "does not answer for the series as DICOMweb asks"),
        ((200, {"Content-Length": "999"}, b"[{"), "cannot be reached for the series"),
        ((200, {}, b"[]"), "holds no series with this SeriesInstanceUID"),
    ],
)
def test_what_the_archive_answers_is_said(tmp_path: Path, answer: Answer, message: str) -> None:
    with archive(lambda *_: answer) as (url, _):
        said = fetch(url, tmp_path / "series")
    assert said.startswith(url)
    assert message in said
    assert "\n" not in said
    assert not list(tmp_path.iterdir())


def cut(answer: Answer) -> Answer:
    """The same answer, broken off before its end."""
    status, fields, content = answer
    return status, {**fields, "Content-Length": str(len(content))}, content[: len(content) // 2]


@pytest.mark.parametrize(
    ("retrieved", "message"),
    [
        (parts(instance(0)), "sent 1 of 3 instances of the series, nothing was kept"),
        (cut(parts(*map(instance, range(3)))), "cannot be reached for the series"),
        ((200, {"Content-Type": "text/plain"}, b"later"), "does not answer for the series as DICOMweb asks"),
        ((500, {}, b""), "answers 500 for the series"),
    ],
)
def test_half_a_series_is_not_kept(tmp_path: Path, retrieved: Answer, message: str) -> None:
    with archive(serving(retrieved, 3)) as (url, _):
        assert message in fetch(url, tmp_path / "series")
    assert not list(tmp_path.iterdir())


def test_silence_and_a_closed_port_are_said(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert "gave no answer for the series in time" in fetch(url, tmp_path / "a", "--timeout", 0.2)
    assert "cannot be reached for the series (ConnectionError)" in fetch(url, tmp_path / "a")


def test_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    answers = serving(parts(instance(0)), 1)
    monkeypatch.setattr(Dataset, "save_as", full)
    with archive(answers) as (url, _):
        said = fetch(url, tmp_path / "series")
    assert f"{tmp_path / 'series'} could not be written, as the disk of {tmp_path} is full" in said
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_is_kept(tmp_path: Path) -> None:
    assert "is there already: name a new folder" in fetch("http://127.0.0.1:9", tmp_path)


@pytest.mark.parametrize("url", ["127.0.0.1/dicom-web", "ftp://host", "http://"])
def test_no_url(tmp_path: Path, url: str) -> None:
    assert "give the DICOMweb root" in fetch(url, tmp_path / "series")


def test_token_is_sent_and_no_password_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DICOMWEB_TOKEN", "abc")
    with archive(lambda *_: (401, {}, b"")) as (url, headers):
        said = fetch(url.replace("127", "me:secret@127"), tmp_path / "series")
        assert said.startswith(url)
    assert "secret" not in said
    assert headers[0]["Authorization"] == "Bearer abc"


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    for number in range(3):
        (tmp_path / f"{number}.dcm").write_bytes(encoded(instance(number)))
    return sorted(tmp_path.glob("*.dcm"))


def test_files_are_stored(files: list[Path]) -> None:
    bodies: list[bytes] = []

    def answer(_: str, __: str, body: bytes) -> Answer:
        bodies.append(body)
        return 200, {"Content-Type": "application/dicom+json"}, b"{}"

    with archive(answer) as (url, _):
        assert f"3 file(s) in {url}" in workbench("store", url, files[0].parent)
    assert all(file.read_bytes() in body for file, body in zip(files, bodies, strict=True))


FAILED = {"00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [43264]}}]}}


@pytest.mark.parametrize(
    ("status", "content", "reason"),
    [
        (202, json.dumps(FAILED), "failure reason 43264"),
        (409, json.dumps(FAILED), "failure reason 43264"),
        (409, "{}", "answer 409"),
        (409, "", "answer 409"),
        (409, "<NativeDicomModel/>", "answer 409"),
    ],
)
def test_a_file_that_is_refused_does_not_stop_the_others(
    files: list[Path], status: int, content: str, reason: str
) -> None:
    def answer(_: str, __: str, body: bytes) -> Answer:
        if f"{SERIES}.1".encode() not in body:
            return 200, {}, b""
        return status, {"Content-Type": "application/dicom+json"}, content.encode()

    with archive(answer) as (url, headers):
        said = workbench("store", url, *files)
        assert f"{url} stored 2 of 3 files and refused {files[1]} ({reason})" in said
    assert len(headers) == 3


def test_nothing_is_stored_when_one_file_is_broken(files: list[Path]) -> None:
    files[1].write_bytes(b"no DICOM")
    with archive(lambda *_: (200, {}, b"")) as (url, headers):
        assert f"{files[1]} cannot be read as DICOM" in workbench("store", url, *files)
        (empty := files[0].parent / "empty").mkdir()
        assert "no .dcm file there" in workbench("store", url, empty)
    assert not headers
