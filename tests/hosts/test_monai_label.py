"""Both packages in a real MONAI Label server, driven by its own client: `make test-hosts`.

In the order of the file: what is labelled and trained later in it stays without label and as packaged before.
"""

from __future__ import annotations

import http.server
import math
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from scripts.files import sha256
from tests.commands import read_array
from tests.hosts.conftest import HIPPOCAMPUS, LABELLED, NUCLEI, Kind, Report
from tests.hosts.server import CallError, Server, call, wait_until_up

pytestmark = pytest.mark.usefixtures("environment")

#: Largest difference of two affines, mm: NIfTI holds them in float32, as numbers or as a quaternion.
AFFINE_TOLERANCE = 1e-4


def same(result: Path, own: Path) -> int:
    """The voxels of two equal results.

    Raises:
        AssertionError: type, values or affine differ.
    """
    theirs, ours = read_array(result), read_array(own)
    assert theirs.dtype == ours.dtype
    np.testing.assert_array_equal(theirs, ours)
    assert len(np.unique(ours)) > 1, f"{own} holds nothing but background"
    if own.name.endswith(".nii.gz"):
        affines = [nib.Nifti1Image.from_filename(file).affine for file in (result, own)]
        np.testing.assert_allclose(*affines, rtol=0, atol=AFFINE_TOLERANCE)
    return ours.size


def own_result(folder: Path, name: str) -> Path:
    (found,) = folder.glob(f"{name}_seg.*")
    return found


def entropies(server: Server) -> dict[str, float | None]:
    """The score of each image without label."""
    entries = server.call("datastore")["objects"]
    return {
        name: entry["image"]["info"].get("epistemic_entropy")
        for name, entry in entries.items()
        if not entry["labels"]
    }


def test_info(server: Server, kind: Kind, report: Report) -> None:
    with report.step("info", kind.model) as result:
        info = server.call("info")
        assert set(info["models"]) == set(info["trainers"]) == set(info["scoring"]) == {HIPPOCAMPUS, NUCLEI}
        model = info["models"][kind.model]
        assert (model["type"], model["dimension"]) == ("segmentation", kind.dimension)
        assert model["labels"] == kind.labels
        assert model["config"]["model_filename"] == ["model.pt"]
        assert info["datastore"]["total"] == len(kind.images())
        result(f"{kind.dimension}D, labels {', '.join(kind.labels)}, {len(kind.images())} images")


@pytest.mark.parametrize("strategy", ["first", "random"])
def test_next_sample(strategy: str, server: Server, kind: Kind, report: Report) -> None:
    with report.step(f"next sample, strategy {strategy}", kind.model) as result:
        sample = server.call("next_sample", strategy=strategy, params={})
        assert Path(sample["path"]) == kind.images()[sample["id"]]
        result("an image of the folder")


def test_inference_is_ours(server: Server, kind: Kind, own: dict[str, Path], report: Report) -> None:
    with report.step("inference", kind.model) as result:
        count = sum(
            same(server.infer(kind.model, name), own_result(own[kind.model], name)) for name in kind.images()
        )
        result(f"{len(kind.images())} images, {count:,} voxels, each that of our own inference")
    assert server.logs("runtime auto: openvino is not installed")


def test_both_models_at_once(
    server: Server, volumes: Kind, pictures: Kind, own: dict[str, Path], report: Report
) -> None:
    """With files that are sent, so that each server segments images of both kinds."""
    jobs = [(kind.model, *image) for kind in (volumes, pictures) for image in kind.images().items()]
    jobs = jobs[::2] + jobs[1::2]
    with report.step("at once, four callers", "both") as result, ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda job: server.infer(job[0], file=job[2]), jobs))
        for file, (model, name, _) in zip(done, jobs, strict=True):
            same(file, own_result(own[model], name))
        result(f"{len(jobs)} images, each as one at a time")


def test_unknown_model_is_a_sentence(server: Server) -> None:
    with pytest.raises(CallError, match=r"answered 500 to 'infer': it failed; its log says why") as error:
        call(server.url, server.folder, "infer", model="nobody", image_id="", params={}, file=str(__file__))
    assert "\n" not in str(error.value)
    assert server.logs("There is no model 'nobody' available")


def test_scoring_ranks_the_images(server: Server, kind: Kind, report: Report) -> None:
    """By the entropy of probabilities: between 0 and that of a coin with as many sides as classes."""
    with report.step("scoring for active learning", kind.model) as result:
        server.call("score", model=kind.model, max_workers=1)
        server.wait("score_status")
        scores = entropies(server)
        assert set(scores) == set(kind.images())
        values = [score for score in scores.values() if score is not None]
        assert len(values) == len(scores)
        assert all(0 < value < math.log(3) for value in values)
        assert len(set(values)) == len(values)
        for clear in kind.clear:
            assert (scores[clear] or 0) < (scores["noisy"] or 0)
        result(f"{len(values)} images, entropy {min(values):.3f} to {max(values):.3f}")


def test_corrected_labels_are_kept(server: Server, kind: Kind, report: Report) -> None:
    with report.step("labels saved back", kind.model) as result:
        for name, truth in kind.truth.items():
            server.call("save_label", image_id=name, label_in=str(truth), params={"label_info": []})
        objects = server.call("datastore")["objects"]
        final = {name for name in objects if "final" in objects[name]["labels"]}
        assert final == set(kind.truth)
        for name, truth in kind.truth.items():
            kept = Path(server.call("download_label", label_id=name, tag="final"))
            np.testing.assert_array_equal(read_array(kept), read_array(truth))
        result(f"{LABELLED} labels, found under the tag final, the same voxels")


def test_one_epoch_is_served(server: Server, kind: Kind, report: Report, tmp_path: Path) -> None:
    """Of three labelled volumes one validates, of three pictures none."""
    before = sha256(server.weights(kind.model))
    with report.step(f"one epoch on {LABELLED} labels, val_split {kind.val_split}", kind.model) as result:
        server.call("train_start", model=kind.model, params={"max_epochs": 1, "val_split": kind.val_split})
        server.wait("train_status")
        after = sha256(server.weights(kind.model))
        assert after != before
        result(f"DONE, model.pt {before[:8]} is now {after[:8]}")
    own = kind.segmented(server.weights(kind.model), tmp_path)
    with report.step("inference with the new weights", kind.model) as result:
        for name in kind.images():
            same(server.infer(kind.model, name), own_result(own, name))
        result(f"{len(kind.images())} images, each voxel that of our own inference")


def test_scoring_and_samples_leave_out_what_is_labelled(server: Server, kind: Kind) -> None:
    assert set(entropies(server)) == set(kind.images()) - set(kind.truth)
    sample = server.call("next_sample", strategy="first", params={})
    assert sample["id"] not in kind.truth


@contextmanager
def answering(status: int) -> Iterator[str]:
    """An address where every request gets one status; with 200 something that is no JSON; with 0 nothing."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"<html>")

        def log_message(self, *_: Any) -> None:
            pass

    if status == 0:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            yield f"http://127.0.0.1:{probe.getsockname()[1]}"  # bound, and nobody listens
        return
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        (401, "answered 401 to 'info': it wants a login"),
        (404, "answered 404 to 'info': it knows no such address or entry"),
        (500, "answered 500 to 'info': it failed; its log says why"),
        (503, "answered 503 to 'info': its log says why"),
        (200, "answered 'info' with something else than JSON"),
        (0, "does not answer 'info'"),
    ],
)
def test_bad_answers_are_a_sentence(status: int, sentence: str, tmp_path: Path) -> None:
    with answering(status) as url, pytest.raises(CallError) as error:
        call(url, tmp_path, "info")
    assert str(error.value).startswith(f"{url} {sentence}")
    assert "\n" not in str(error.value)


def test_a_server_that_does_not_start_is_a_sentence_and_its_log(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text("line 1\nNo module named 'that'\n")
    with answering(0) as url, subprocess.Popen(["false"]) as process:
        server = Server(url, tmp_path, tmp_path, log, tmp_path)
        process.wait()
        with pytest.raises(pytest.fail.Exception) as error:
            wait_until_up(server, process)
    first, *rest = str(error.value).splitlines()
    assert first == f"MONAI Label at {url} ended with status 1"
    assert rest == [f"the end of {log}:", "line 1", "No module named 'that'"]
