"""int8: close to the network, for these weights alone, never where the user wants exact results."""

from __future__ import annotations

import copy
import functools
import itertools
import logging
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import matplotlib
import pytest
import torch
from torch import nn

from bundle.ship import quantise
from bundle.ship.quantise import calibration_tiles
from scripts.compute import runtimes
from scripts.compute.exported import Exported
from scripts.compute.inferers import SlidingWindowSlabInferer
from scripts.compute.quantised import digest, for_precision, int8_files, multiplies_int8, read_int8
from scripts.compute.runtimes import Runtime
from scripts.data.checks import Problem
from scripts.data.dataset import PROBLEM
from scripts.errors import InputError
from tests.commands import ROOT, command

pytestmark = pytest.mark.skipif(
    not (find_spec("openvino") and find_spec("nncf") and multiplies_int8()),
    reason="needs requirements-runtimes.txt, and a processor with AVX2",
)

SENTENCE = r"run python -m bundle export --format openvino-int8 with these weights"


class Bright(nn.Module):
    """Class 1 where the mean of the neighbours is above one half, confidently: known by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.blur = nn.Conv2d(1, 4, 3, padding=1)
        self.head = nn.Conv2d(4, 2, 1)
        nn.init.constant_(self.blur.weight, 1 / 9)
        nn.init.constant_(self.blur.bias, 0)
        self.head.weight.data = torch.tensor([[-3.0] * 4, [3.0] * 4])[..., None, None]
        self.head.bias.data = torch.tensor([6.0, -6.0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blur(x).relu())


class Delicate(Bright):
    """Bright by a difference of two sums a thousand times as large."""

    def __init__(self) -> None:
        super().__init__()
        self.many = nn.Conv2d(1, 2, 1)
        self.many.weight.data = torch.tensor([[999.0], [1000.0]])[..., None, None]
        self.many.bias.data = torch.zeros(2)
        self.difference = nn.Conv2d(2, 1, 1)
        self.difference.weight.data = torch.tensor([[-1.0, 1.0]])[..., None, None]
        self.difference.bias.data = torch.zeros(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blur(self.difference(self.many(x))).relu())


class Dark(Bright):
    """Another network with weights of the same names and values."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blur(1 - x).relu())


def images(count: int) -> list[torch.Tensor]:
    """Blocks of light and shade of 4 x 4 pixels, with some noise."""
    generator = torch.Generator().manual_seed(count)
    coarse = torch.rand((count, 1, 1, 8, 8), generator=generator).round()
    noise = 0.1 * torch.rand((count, 1, 1, 32, 32), generator=generator)
    return list(coarse.repeat_interleave(4, -1).repeat_interleave(4, -2) + noise)


def make(
    network: nn.Module,
    folder: Path,
    share: float = quantise.SHARE,
    tiles: Sequence[torch.Tensor] | None = None,
) -> Path:
    """The pair of files, and an empty model.pt beside it."""
    from openvino import convert_model, save_model

    converted = convert_model(network, example_input=images(1)[0])
    save_model(converted, folder / "network.xml", compress_to_fp16=False)
    quantise.quantise(folder / "network.xml", network, tiles or images(20), folder, share)
    (folder / "model.pt").touch()
    return folder / "model.int8.xml"


def agreement_of(file: Path, exact: nn.Module) -> float:
    """The lowest Dice of a class between an int8 file and its network."""
    run, tiles = Exported(str(file), exact, precision="fast"), torch.cat(images(20))
    return min(dice for dice, _ in runtimes.agreement(run(tiles), compute(exact, tiles)).values())


@functools.cache
def network() -> nn.Module:
    return Bright().eval()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(network(), tmp_path_factory.mktemp("int8"))


def compute(module: nn.Module, tile: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return module(tile)


def test_rounds_and_is_close_at_every_size(file):
    run = Exported(str(file), network(), precision="fast")
    for size in ((1, 1, 32, 32), (3, 1, 24, 40), (1, 1, 7, 9)):
        tile = torch.rand(size, generator=torch.Generator().manual_seed(size[0]))
        exact = compute(network(), tile)
        rounded = run(tile)
        # two layers of 8 bits: a step of the output is 12 / 255
        assert 0 < (rounded - exact).abs().max() < 0.3
        assert (rounded.argmax(1) == exact.argmax(1)).float().mean() > 0.95


def rounded_layers(file: Path) -> int:
    """Operations of an int8 file that round."""
    operations = runtimes.openvino_core().read_model(file).get_ops()
    return sum(operation.get_type_name() == "FakeQuantize" for operation in operations)


def test_tiles_may_differ_in_size(tmp_path):
    """A small image is one small tile."""
    tiles = [tile[..., : 32 - 8 * (index % 2)] for index, tile in enumerate(images(20))]
    run = Exported(str(make(network(), tmp_path, tiles=tiles)), network(), precision="fast")
    tile = images(1)[0]
    assert 0 < (run(tile) - compute(network(), tile)).abs().max() < 0.3


def test_the_stack_for_signal_handlers_stays(tmp_path):
    """nncf has cores of its own: with theirs gone, the next signal would end the process."""
    before = runtimes.signal_stack().raw
    make(Delicate().eval(), tmp_path)
    assert runtimes.signal_stack().raw == before


def test_layers_that_change_the_classes_stay_in_float(tmp_path):
    """Of two branches one is a small difference of large numbers, which 8 bits cannot tell."""
    torch.manual_seed(0)
    delicate = Delicate().eval()
    free = make(delicate, tmp_path, share=float("inf"))
    apart, rounded = agreement_of(free, delicate), rounded_layers(free)
    kept = make(delicate, tmp_path)
    assert apart < runtimes.SAME_CLASS < agreement_of(kept, delicate)
    assert 0 < rounded_layers(kept) < rounded


def test_a_network_that_bears_no_rounding_is_refused(tmp_path):
    with pytest.raises(InputError, match="no layer can be rounded to 8 bits"):
        make(network(), tmp_path, share=0)


def test_auto_takes_it_once_judged(file, caplog):
    run = Runtime("auto", quantised=for_precision("fast", str(file.with_name("model.pt"))))
    tile = images(1)[0]
    with caplog.at_level(logging.INFO):
        assert torch.equal(run(network(), tile), compute(network(), tile))
        rounded = run(network(), tile)
    assert "runtime auto: took openvino in int8 (Dice with float32 from " in caplog.text
    assert torch.equal(rounded, Exported(str(file), network(), precision="fast")(tile))
    assert not torch.equal(rounded, compute(network(), tile))


def test_other_weights_are_told_and_computed_exactly(file, caplog):
    changed = copy.deepcopy(network())
    run, tile = Runtime("auto", quantised=file), images(1)[0]
    for _ in range(2):
        run(changed, tile)
    assert "left out" not in caplog.text
    with torch.no_grad():
        changed.head.bias[0] += 1e-3  # what a further training changes
    for _ in range(2):
        torch.testing.assert_close(run(changed, tile), compute(changed, tile), atol=1e-4, rtol=0)
    assert f"left out openvino in int8 ({file} was made of other weights, or of another" in caplog.text


def test_another_network_with_these_weights_is_found_by_the_judge(file, caplog):
    dark, tile = Dark().eval(), images(1)[0]
    assert digest(dark) == digest(network())
    run = Runtime("auto", quantised=file)
    for _ in range(2):
        torch.testing.assert_close(run(dark, tile), compute(dark, tile), atol=1e-4, rtol=0)
    assert "runtime auto: left out openvino in int8 (Dice with float32 from 0." in caplog.text


@pytest.mark.parametrize("damage", ["cut .xml", "changed .bin", "no .bin", "not ours"])
def test_damaged_files_are_refused(damage, file, tmp_path):
    xml, binary = int8_files(tmp_path / "model.pt")
    for source, copied in zip((file, file.with_suffix(".bin")), (xml, binary), strict=True):
        shutil.copy(source, copied)
    assert read_int8(xml, network())
    if damage == "cut .xml":
        xml.write_bytes(xml.read_bytes()[:-500])
    elif damage == "changed .bin":
        content = bytearray(binary.read_bytes())
        content[len(content) // 2] ^= 1
        binary.write_bytes(content)
    elif damage == "no .bin":
        binary.unlink()
    else:
        shutil.copy(file.with_name("network.xml"), xml)
        shutil.copy(file.with_name("network.bin"), binary)
    with pytest.raises(InputError, match=rf"(is damaged|is not what was written with).*{SENTENCE}"):
        read_int8(xml, network())
    if damage == "changed .bin":  # which OpenVINO reads
        with pytest.raises(InputError, match=rf"is not what was written with.*{SENTENCE}"):
            Exported(str(xml), network(), precision="fast")


def test_exact_never_takes_it(file, caplog):
    assert for_precision("exact", str(file.with_name("model.pt"))) is None
    with pytest.raises(InputError, match="a network in int8, and precision is 'exact': set precision to"):
        Exported(str(file), network())
    exact = Exported(str(file.with_name("network.xml")), network())
    torch.testing.assert_close(exact(images(1)[0]), compute(network(), images(1)[0]), atol=1e-4, rtol=0)
    assert not caplog.text


def test_what_fast_cannot_have_is_told(file, tmp_path, monkeypatch, caplog):
    with pytest.raises(InputError, match="precision is 'quick': use 'exact' or 'fast'"):
        for_precision("quick", "model.pt")
    assert for_precision("fast", str(tmp_path / "model.pt")) is None
    assert f"{tmp_path}/model.int8.xml is not there: run python -m bundle export" in caplog.text
    assert for_precision("fast", ["a/model.pt", "b/model.pt"]) is None
    assert "several checkpoints have no int8 file; going on exactly" in caplog.text
    tile = images(1)[0]
    assert torch.equal(Runtime("torch", quantised=file)(network(), tile), compute(network(), tile))
    assert "is for runtime 'auto', and runtime is 'torch': going on exactly" in caplog.text
    monkeypatch.setattr(runtimes, "multiplies_int8", lambda: False)
    Runtime("auto", quantised=file)(network(), tile)
    assert "left out openvino in int8 (this processor does not multiply whole numbers" in caplog.text


def cases(count: int) -> list[dict[str, torch.Tensor]]:
    """Noise, and in one place of it an object of class 1 or 2: (1, 40, 40)."""
    generator = torch.Generator().manual_seed(count)
    made = []
    for index in range(count):
        image, label = torch.rand((1, 40, 40), generator=generator), torch.zeros(1, 40, 40)
        top, left = torch.randint(36, (2,), generator=generator)
        image[0, top : top + 4, left : left + 4] += 10 + index
        label[0, top : top + 4, left : left + 4] = 1 + index % 2
        made.append({"image": image, "label": label})
    return made


def test_calibrates_on_the_windows_of_inference_around_foreground():
    given = cases(10)
    given[3]["image"] = torch.full((1, 40, 40), 7.0)  # says nothing
    given[5]["label"][:] = 0
    tiles = calibration_tiles(network(), given, SlidingWindowSlabInferer((16, 16), overlap=0.5), (16, 16))
    assert len(tiles) == 9 * 4  # of 24 x 24 pixels two windows an axis
    found = []
    for four in zip(*[iter(tiles)] * 4, strict=True):
        assert all(tile.shape == (1, 1, 16, 16) for tile in four)
        places = [
            (index, torch.tensor(corner))
            for index, case in enumerate(given)
            for corner in itertools.product(range(25), repeat=2)
            if torch.equal(
                case["image"][:, corner[0] : corner[0] + 16, corner[1] : corner[1] + 16], four[0][0]
            )
        ]
        assert len(places) == 1
        ((index, corner),) = places
        part = given[index]["label"][0, corner[0] : corner[0] + 24, corner[1] : corner[1] + 24]
        assert part.any() == (index != 5)
        assert max(tile.max() for tile in four) > 9 or index == 5
        found.append(index)
    assert sorted(found) == [0, 1, 2, 4, 5, 6, 7, 8, 9]


def test_what_is_no_image_is_passed_over(caplog):
    """Without the checks of files: a case that cannot be loaded, and one that became NaN."""
    given = cases(10)
    given[2]["image"] = given[2]["image"] * float("nan")
    given[4] = {"case": "cut", PROBLEM: asdict(Problem("cut", "cut.png", "half of it", "all is", "mend it"))}
    tiles = calibration_tiles(network(), given, SlidingWindowSlabInferer((16, 16), overlap=0.5), (16, 16))
    assert len(tiles) == 8 * 4
    assert all(tile.isfinite().all() for tile in tiles)
    assert "cut.png: found half of it" in caplog.text


def test_enough_is_enough(monkeypatch):
    inferer = SlidingWindowSlabInferer((16, 16), overlap=0.5)
    monkeypatch.setattr(quantise, "TILES", 34)
    assert len(calibration_tiles(network(), cases(20), inferer, (16, 16))) == 36
    monkeypatch.setattr(quantise, "VOXELS", 16 * 16)  # the cases are what counts then
    assert len(calibration_tiles(network(), cases(20), inferer, (16, 16))) == 4 * quantise.LEAST_CASES


def test_too_little_to_calibrate_on_is_a_sentence():
    inferer = SlidingWindowSlabInferer((16, 16))
    flat = [{"image": torch.full((1, 40, 40), 3.0), "label": torch.ones(1, 40, 40)}] * 5
    with pytest.raises(InputError, match=r"training section has 7 cases whose voxels vary.*8 or more: give"):
        calibration_tiles(network(), cases(7) + flat, inferer, (16, 16))
    empty = [{**case, "label": torch.full((1, 40, 40), 255 * (i % 2))} for i, case in enumerate(cases(8))]
    with pytest.raises(InputError, match="none of 8 training cases has foreground"):
        calibration_tiles(network(), empty, inferer, (16, 16))


#: In a process that pytest has no part in: nncf keeps still where it finds that.
ALONE = """
import sys

events = []
sys.addaudithook(lambda event, _: events.append(event))
from pathlib import Path
import torch
from bundle.ship.quantise import quantise
from scripts.compute.quantised import read_int8
import openvino

folder, network = Path(sys.argv[1]), torch.nn.Conv2d(1, 2, 3).eval()
tiles = [torch.rand(1, 1, 8, 8) for _ in range(3)]
openvino.save_model(openvino.convert_model(network, example_input=tiles[0]), folder / "network.xml")
quantise(folder / "network.xml", network, tiles, folder, share=float("inf"))
read_int8(folder / "model.int8.xml", network)
local = {"socket.__new__", "socket.bind"}  # by which urllib3 asks the system for IPv6 when it is imported
print(sorted({event for event in events if event.startswith("socket.") or event == "os.fork"} - local))
"""


@pytest.mark.long
def test_nothing_is_sent(tmp_path):
    """Neither OpenVINO nor nncf connects, starts a process for it, or leaves an identifier behind."""
    home = tmp_path / "home"
    home.mkdir()
    unset = [
        part for name in ("CI", "TF_BUILD", "JENKINS_URL", "NNCF_CI", "NNCF_DEV") for part in ("-u", name)
    ]
    fonts = f"MPLCONFIGDIR={matplotlib.get_cachedir()}"  # or they are looked for anew
    launcher = ("env", *unset, f"HOME={home}", fonts, sys.executable)
    done = command("-W", "ignore", "-c", ALONE, str(tmp_path), cwd=ROOT, launcher=launcher)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert not (home / "intel").exists()
