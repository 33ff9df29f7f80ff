"""The benchmark takes turns, counts right and says what is missing; the peers do what we do."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import monai.bundle
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_map

from bundle.benchmark import hundreds, networks, runner, start
from bundle.benchmark.runner import CEILING, OURS, Contest, Entry, Result
from bundle.cli import ContestName
from scripts.errors import InputError
from tests.commands import ROOT, command, invoke, unchanged_process, workbench

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def unchanged_precision():
    """Put back what entries that are made in this process change for good."""
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn)
    before = [backend.fp32_precision for backend in backends]
    yield
    for backend, precision in zip(backends, before, strict=True):
        backend.fp32_precision = precision


def make_diary(name: str, diary: Path) -> Callable[[], torch.Tensor]:
    """Work that writes its name into a file, and gives the length of the name."""

    def work() -> torch.Tensor:
        with diary.open("a") as file:
            file.write(f"{name} ")
        return torch.tensor(float(len(name)))

    return work


def make_failing() -> Callable[[], None]:
    raise ValueError("no such weights\nand a second line")


def make_dying() -> Callable[[], None]:
    os._exit(3)


def test_entries_take_turns_and_failures_stay_their_own(tmp_path):
    diary = tmp_path / "diary"
    entries = {
        "a": Entry(partial(make_diary, "a", diary), OURS, reference="a"),
        "failing": Entry(make_failing, "x"),
        "dying": Entry(make_dying, "x"),
        "absent": Entry(make_failing, "x", needs=("no_such_package",)),
        "bbb": Entry(partial(make_diary, "bbb", diary), "x", "tuned", reference="a"),
    }
    contest = Contest("turns", "", entries, "off by", runner.largest_difference)
    turns: list[str] = []
    results = runner.run(contest, 3, CPU, threads=1, least_seconds=0, tick=turns.append)
    # two calls to warm up, of which the second is timed, then one a round
    assert diary.read_text().split() == ["a", "a", "bbb", "bbb", *["a", "bbb"] * 3]
    assert turns == ["a", "failing", "dying", "bbb", *["a", "bbb"] * 3]
    timed = {name: len(results[name].seconds) for name in entries}
    assert timed == {"a": 3, "failing": 0, "dying": 0, "absent": 0, "bbb": 3}
    assert results["failing"].note == "failed: ValueError: no such weights"
    assert results["dying"].note == "failed: its process ended with exit status 3"
    assert results["absent"].note == "not installed: pip install --no-deps -r requirements-benchmark.txt"
    assert (results["a"].agreement, results["bbb"].agreement) == (0.0, 2.0)
    assert 50 * 2**20 < results["a"].memory < 50 * 2**30


def fake() -> tuple[Contest, dict[str, Result]]:
    def never() -> Callable[[], None]:
        raise AssertionError

    entries = {
        "best": Entry(never, CEILING, work=10.0),
        "peer": Entry(never, "x", work=4.0, ceiling="best"),
        "slow": Entry(never, OURS, work=4.0, ceiling="best"),
        "fast": Entry(never, OURS, work=4.0, ceiling="best"),
        "gone": Entry(never, "y", ceiling="best"),
    }
    seconds = {
        "best": [1.0, 1.0, 3.0],
        "peer": [8.0, 6.0, 40.0],
        "slow": [4.0, 4.0, 4.0],
        "fast": [1.0, 2.0, 8.0],
    }
    results = {name: Result(times, memory=2**30) for name, times in seconds.items()}
    return Contest("title", "setting", entries), {**results, "gone": Result(note="not installed: do")}


def make_long_diary(diary: Path) -> Callable[[], torch.Tensor]:
    """Work that counts as long in its process, whatever it takes."""
    runner.WARM_BY_ITSELF = 0.0
    return make_diary("long", diary)


def test_long_work_is_not_done_again_to_warm_up(tmp_path):
    diary = tmp_path / "diary"
    contest = Contest("turns", "", {"long": Entry(partial(make_long_diary, diary), OURS)}, "off by")
    results = runner.run(contest, 2, CPU, threads=1, least_seconds=0)
    assert diary.read_text().split() == ["long"] * 2
    assert len(results["long"].seconds) == 2


def test_medians_ratios_and_shares_of_the_ceiling():
    report = runner.summary(*fake())
    rows = {row["name"]: row for row in report["entries"]}
    peer = rows["peer"]
    assert (peer["median"], peer["min"], peer["max"]) == (8.0, 6.0, 40.0)
    # in each round against ours of that round: 8/1, 6/2, 40/8 and 8/4, 6/4, 40/4
    assert report["ratios"]["fast"]["peer"] == 5.0
    assert report["ratios"]["slow"]["peer"] == 2.0
    assert set(report["ratios"]) == {"fast", "slow"}
    # the best does 10 in 1 s; the peer 4 in 8 s, ours 4 in 2 s
    assert peer["ceiling_share"] == pytest.approx(0.05)
    assert rows["fast"]["ceiling_share"] == pytest.approx(0.2)
    assert rows["best"]["ceiling_share"] is None
    assert rows["gone"]["median"] is None
    assert rows["gone"]["note"] == "not installed: do"
    json.dumps(report)


def test_table_shows_the_fastest_of_ours_as_one():
    lines = {
        line.split()[0]: line.split() for line in runner.table(runner.summary(*fake())).splitlines() if line
    }
    assert lines["fast"] == ["fast", "ours", "default", "2", "1", "8", "1.00", "20%", "1.00", "GiB"]
    assert lines["peer"] == ["peer", "x", "default", "8", "6", "40", "5.00", "5%", "1.00", "GiB"]
    assert " ".join(lines["gone"]) == "gone y default not installed: do"


def test_missing_names_the_file_to_install(monkeypatch):
    assert runner.missing(("torch", "json")) == ""
    monkeypatch.setattr(runner, "find_spec", lambda name: None)
    assert runner.missing(("openvino",)) == "not installed: pip install -r requirements-runtimes.txt"
    assert "requirements-benchmark.txt" in runner.missing(("openvino", "torchio"))
    assert (ROOT / "requirements-benchmark.txt").is_file()


def test_operations_are_those_of_a_convolution():
    build = partial(nn.Conv2d, 2, 5, 3, padding=1)
    forward = 2 * 5 * 2 * 9 * 16 * 8  # multiply and add, channels, kernel, pixels
    assert networks.operations(build, (1, 2, 16, 8)) == forward
    # the backward pass computes the weights' gradient; the image needs none
    assert networks.operations(build, (1, 2, 16, 8), training=True) == 2 * forward


def runs_here(name: str, entry: Entry) -> bool:
    """Whether an entry runs in a moment: what is compiled or converted is left out."""
    slow = ("compile", "openvino", "onnxruntime", "auto")
    return not runner.missing(entry.needs) and not any(word in name for word in slow)


def agrees(contest: Contest, entry: Entry, value: float) -> bool:
    """Whether an entry's outcome is its reference's, as far as its method allows.

    nnU-Net sums in half precision and spaces its windows otherwise; bf16 has 8 bits; a label that is taken
    from the nearest voxel may leave the image, which is interpolated, at the border of a blob;
    surface-distance weighs by area.
    """
    if contest.agreement in ("same class", "label follows", "in the foreground"):
        return value > 0.95
    rough = {"loss off by": 0.01, "off by": 0.3 if entry.origin == "surface-distance" else 1e-4}
    return value < rough[contest.agreement]


@pytest.fixture
def one_thread():
    """Tiny work gains nothing from threads, and waits for them where other processes compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    "name", [name for name in ContestName if name not in ("start", "hundreds")]
)  # commands; cohort's
def test_entries_do_the_same_work(name):
    for contest in importlib.import_module(f"bundle.benchmark.{name}").contests(True, CPU):
        assert any(entry.origin == OURS for entry in contest.entries.values())
        assert contest.compare is not None
        outcomes = {}
        for label, entry in contest.entries.items():
            assert entry.ceiling is None or contest.entries[entry.ceiling].origin == CEILING
            twin = entry.allocator == "tuned" and entry.origin not in (OURS, CEILING)
            if twin or not runs_here(label, entry):
                continue
            torch.manual_seed(0)
            outcomes[label] = tree_map(runner._plain, entry.make()())
            if entry.reference in outcomes:
                agreement = contest.compare(outcomes[label], outcomes[entry.reference])
                assert agrees(contest, entry, agreement), (contest.title, label, agreement)
        assert any(contest.entries[label].reference in outcomes for label in outcomes)


@pytest.mark.workflow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["train", "inference"])
def test_commands_that_are_timed_do_the_same_work(kind, tmp_path, capsys):
    """In this process, which has imported everything."""
    made = {}
    for whose in ("monai", "ours"):
        output = tmp_path / f"{whose}-output"
        output.mkdir()
        options = start.prepare(kind, whose, tmp_path / whose, small=True)
        one = {"train::trainer::max_epochs": 1}
        with unchanged_process():
            monai.bundle.run(**options, **(one if kind == "train" else {}), output_dir=str(output))
        (output / "log").write_text("".join(capsys.readouterr()))
        made[whose] = start.DONE[kind](output)
    if kind == "train":
        assert made == {"monai": 1.0, "ours": 1.0}
    else:
        assert np.mean(made["ours"] == made["monai"]) > 0.95
        assert len(np.unique(made["monai"])) > 1


def test_hundreds_of_cases_are_a_cohort_beside_its_network_alone():
    small, large = hundreds.COHORTS
    assert (small.count, large.count) == (200, 100)
    for contest in hundreds.contests(True, CPU):
        assert list(contest.entries) == ["the network alone", "inference.json"]
        assert contest.entries["inference.json"].ceiling == "the network alone"


def test_contests_without_peers_have_ours_and_say_what_is_missing(monkeypatch):
    monkeypatch.setattr(runner, "find_spec", lambda name: None)
    monkeypatch.setattr(networks, "find_spec", lambda name: None)
    for name in ContestName:
        for contest in importlib.import_module(f"bundle.benchmark.{name}").contests(True, CPU):
            runs = [entry for entry in contest.entries.values() if not runner.missing(entry.needs)]
            assert any(entry.origin == OURS for entry in runs)
            assert name == "hundreds" or any(entry.origin not in (OURS, CEILING) for entry in runs)
            assert {entry.origin for entry in runs}.isdisjoint({"nnU-Net", "batchgeneratorsv2", "TorchIO"})


@pytest.mark.parametrize("name", ["inference", "training"])
def test_contests_on_a_gpu_cover_what_it_can_do(name, monkeypatch):
    monkeypatch.setattr(networks, "mixed_precision", lambda device: torch.bfloat16)
    for contest in importlib.import_module(f"bundle.benchmark.{name}").contests(True, torch.device("cuda")):
        ours = " / ".join(label for label, entry in contest.entries.items() if entry.origin == OURS)
        for precision in ("fp32", "TF32", "bf16"):
            for extra in ("", ", channels last", ", channels last, compile", ", channels last, CUDA graph"):
                assert precision + extra in ours
        assert all(
            entry.ceiling is None or entry.ceiling in contest.entries for entry in contest.entries.values()
        )


def test_variant_keeps_what_the_network_computes():
    network, image = nn.Conv2d(2, 3, 3), torch.rand(1, 2, 8, 8)
    expected = network(image)
    for precision in ("fp32", "TF32"):
        prepared = networks.Variant(precision, channels_last=True).prepare(network, image)
        assert torch.allclose(prepared(image), expected, atol=1e-6)


@pytest.mark.parametrize(("allowed", "precision"), [(True, "tf32"), (False, "ieee")])
def test_tf32_is_switched_for_products_and_convolutions_alike(allowed, precision):
    networks.set_tf32(allowed)
    assert torch.backends.cuda.matmul.fp32_precision == precision
    assert torch.backends.cudnn.conv.fp32_precision == precision


@pytest.mark.long
def test_command_writes_everything_it_measured(tmp_path):
    file = tmp_path / "figures.json"
    options = ["--only", "weightmap", "--small", "--rounds", "2", "--threads", "1", "--json", str(file)]
    done = command("-m", "bundle", "benchmark", *options, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    report = json.loads(file.read_text())
    assert report["settings"] == {"rounds": 2, "small": True, "device": "cpu", "threads": 1}
    assert report["machine"]["packages"]["torch"] == torch.__version__
    assert {"date", "processor", "cores", "load", "half precision in the processor"} <= set(report["machine"])
    assert {contest["contest"] for contest in report["contests"]} == {"weightmap"}
    for contest in report["contests"]:
        assert {"title", "setting", "unit", "agreement", "entries", "ratios"} <= set(contest)
        for row in contest["entries"]:
            assert row["note"] == ""
            assert len(row["seconds"]) == 2
            assert row["min"] <= row["median"] <= row["max"]
            assert row["agreement"] < 1e-4
            assert row["name"] in done.stdout


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--device", "tpu"], "--device is 'tpu': give cpu, cuda or cuda:1"),
        (["--device", "cuda:99"], "--device is 'cuda:99', which PyTorch does not find here: give cpu"),
    ],
)
def test_wrong_options_are_one_sentence(options, sentence):
    result = invoke("benchmark", *options)
    assert isinstance(result.exception, InputError)
    assert str(result.exception) == sentence


def test_page_describes_every_contest():
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    missing = {name for name in ContestName if f"### {name}\n" not in page}
    assert missing == set()


def test_entries_are_selected_with_what_they_are_measured_by():
    entry = partial(Entry, make_failing)
    entries = {
        "best": entry(CEILING),
        "slow": entry("x"),
        "fast one": entry(OURS, ceiling="best", reference="slow"),
        "other": entry("x", reference="best"),
    }
    contest = Contest("", "", entries)
    assert list(runner.select(contest, "^fast").entries) == ["best", "slow", "fast one"]
    assert runner.select(contest, "").entries == entries
    assert "--match is '(', no regular expression" in workbench("benchmark", "--match", "(")
