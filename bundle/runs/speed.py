"""`python -m bundle tune --speed`: what makes inference fast, and what each of it costs in Dice.

Every setting segments the same validation cases: what computes the network and how precisely, threads, tile,
overlap of the tiles, orientations. The test cases are not read. The Dice of what is chosen flatters a little,
as it was chosen by it; differences between settings are small beside those between cases, and are taken case
by case.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from monai.bundle import ConfigParser
from monai.utils import CommonKeys as Keys
from tqdm import tqdm

from bundle.runs.experiments import Evaluation, merged, parser_of, read_evaluation
from scripts.checkpoints import check_weights, read_weights
from scripts.compute.acceleration import mixed_precision
from scripts.compute.classmaps import straight
from scripts.compute.quantised import int8_files
from scripts.compute.runtimes import Runtime
from scripts.errors import InputError
from scripts.files import atomic_writes, read_json, workshop, write_csv
from scripts.judging import case_of, mean_dice
from scripts.judging.tables import mean_of
from scripts.networks.blocks import Axes
from scripts.networks.sizes import Sizes
from scripts.pictures import save_figure
from scripts.progress import progress
from scripts.recipe import Ids, for_inference, hashes_of, read_recipe
from scripts.settings import CONFIGS
from scripts.tables import Row, table

#: Overlaps that are tried, shares of a window.
OVERLAPS = (0.0, 0.125, 0.25, 0.5)

#: Tiles that are tried: so many times the patch along each axis, and one that covers a middling case,
TILES = (1.0, 1.25, 1.5, 2.0)

#: which has at most so many times the voxels of the patch.
LARGEST_TILE = 8

#: What may be lost against the best setting, in mean Dice, by the name of the overlay.
LOSSES = {"fast": 0.005, "balanced": 0.001, "best": 0.0001}

#: The most promising settings take turns at the end, so many times.
ROUNDS = 3

#: They are those that no faster one beats, and this many of the fastest within each loss.
FASTEST = 2

#: Name of the setting that changes nothing.
AS_CONFIGURED = "as configured"

#: Orientations whose mean is tried: those that the training mirrored to, and all that there are.
MIRRORED, ALL = ORIENTATIONS = ("mirrored as in training", "all orientations")

#: Columns of the table and of speed.csv.
COLUMNS = (
    *("setting", "auto took", "dice", "loss", "largest loss", "seconds a case", "times as fast"),
    "overlay",
)


@dataclass(frozen=True)
class Setting:
    """One way to segment; None leaves what the config has.

    Attributes:
        computed: ids that say what computes the network.
        threads: of PyTorch, which OpenVINO takes too.
        tile: voxels of a window.
        overlap: share of a window that its neighbour covers too.
        orientations: of the image, whose mean is taken: one of ORIENTATIONS.
    """

    computed: tuple[tuple[str, Any], ...] = ()
    threads: int | None = None
    tile: Axes | None = None
    overlap: float | None = None
    orientations: str | None = None

    @property
    def name(self) -> str:
        """For the table."""
        computed = dict(self.computed)
        parts = [computed.get("runtime")]
        if computed:
            exact = "mixed precision" if computed["amp"] else "float32"
            parts += ["int8" if computed["precision"] == "fast" else exact]
        parts += [f"{self.threads} thread{'s' * (self.threads > 1)}"] if self.threads else []
        parts += [f"tile {'x'.join(map(str, self.tile))}"] if self.tile else []
        parts += [f"overlap {self.overlap:g}"] if self.overlap is not None else []
        parts += [self.orientations]
        return ", ".join(part for part in parts if part) or AS_CONFIGURED

    def ids(self, config: Ids, flips: Sequence[int]) -> Ids:
        """What it sets in an inference config, as an overlay has it.

        Args:
            config: the inference config.
            flips: spatial axes that the training mirrored.
        """
        set_: Ids = dict(self.computed)
        if self.threads:
            set_["threads"] = self.threads
        if self.tile:
            set_[f"window_inferer::{_tile_key(config)}"] = list(self.tile)
        if self.overlap is not None:
            set_["window_inferer::overlap"] = self.overlap
        if self.orientations:
            inferer = read_json(CONFIGS / "inferer" / "orientations.json")["inferer"]
            set_["inferer"] = {name: value for name, value in inferer.items() if name != "_desc_"}
        if self.orientations == MIRRORED:
            set_["inferer"] |= {"flip_axes": list(flips), "transpose": False}
        return set_


@dataclass
class Trial:
    """What a setting gave.

    Attributes:
        setting: the setting.
        dice: mean Dice of each case; NaN for one that says nothing.
        seconds: for each round, the mean of a case.
        taken: what runtime "auto" took, which may not be what the setting allows.
        note: why it could not be tried.
    """

    setting: Setting
    dice: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    taken: str = ""
    note: str = ""

    @property
    def mean(self) -> float:
        """Mean Dice over the cases."""
        return mean_of(self.dice)

    @property
    def time(self) -> float:
        """Seconds a case: the median of the rounds."""
        return statistics.median(self.seconds)


class Bench:
    """Segments the validation cases in one setting after another.

    Args:
        config: the inference config.
        evaluation: the cases, and how their logits become classes on the grid of the file.
        weights: of the network.
        checkpoint: where they come from, for messages.
        hashes: of that file, see `scripts.recipe.hashes_of`.
        flips: spatial axes that the training mirrored.
    """

    def __init__(
        self,
        config: Ids,
        evaluation: Evaluation,
        weights: Ids,
        checkpoint: Path,
        hashes: Sequence[str],
        flips: Sequence[int],
    ) -> None:
        self.config = config
        self.flips = flips
        self.evaluation = evaluation
        self.weights = weights
        self.checkpoint = checkpoint
        self.hashes = hashes
        self.trials: dict[Setting, Trial] = {}

    def all(self, settings: Iterable[Setting], bar: tqdm) -> list[Trial]:
        """Try settings that were not tried before; those that work.

        Args:
            settings: in their order.
            bar: of progress, a step a setting.
        """
        found = []
        for setting in dict.fromkeys(settings):
            if setting not in self.trials:
                bar.set_postfix_str(setting.name, refresh=True)
                self.trials[setting] = Trial(setting)
                self.measure(self.trials[setting])
                bar.update()
            if not self.trials[setting].note:
                found.append(self.trials[setting])
        return found

    def measure(self, trial: Trial) -> None:
        """One more round of a setting; what "auto" looks at and a conversion for its tiles do not count."""
        parser = merged(
            [("tune", self.config), (trial.setting.name, trial.setting.ids(self.config, self.flips))]
        )
        dice, seconds = [], []
        with _threads(trial.setting.threads):
            try:
                network = parser.get_parsed_content("network").eval()
                check_weights(network, self.weights, self.checkpoint)
                network.load_state_dict(self.weights)
                inferer, follows = straight(
                    parser.get_parsed_content("inferer"), self.evaluation.postprocessing
                )
                device = parser.get_parsed_content("device")
                runtime = getattr(parser.get_parsed_content("window_inferer"), "runtime", None)
                for case in self.evaluation.sound():
                    inferer(case[Keys.IMAGE][None].to(device), network)
                    if not isinstance(runtime, Runtime) or runtime.is_settled:
                        break
                for case in self.evaluation.sound():
                    image = case[Keys.IMAGE][None].to(device)
                    start = time.perf_counter()
                    done = follows({**case, Keys.PRED: inferer(image, network)[0]})
                    seconds.append(time.perf_counter() - start)
                    dice.append(mean_dice(case_of("", done[Keys.PRED], done[Keys.LABEL])))
            except (InputError, RuntimeError, MemoryError) as error:
                if trial.setting == Setting():
                    raise
                trial.note = f"left out: {' '.join(str(error).split())[:160]}"
                return
        trial.seconds.append(statistics.fmean(seconds))
        trial.dice = dice
        trial.taken = runtime.taken if isinstance(runtime, Runtime) else ""


def tune_speed(
    experiment: Ids, dataset_dir: Path, checkpoint: Path, output_dir: Path, cases: int | None
) -> None:
    """Carry out `bundle.cli.tune --speed`.

    Args:
        experiment: content of an args file.
        dataset_dir: folder with dataset.json.
        checkpoint: weights of the training.
        output_dir: where overlays, table and picture go.
        cases: how many of the validation cases, from the first on; None: all.

    Raises:
        InputError: no or bad validation cases, or none with foreground; a checkpoint of another network; a
            folder that takes no files.
    """
    with workshop(output_dir):  # whether files can be written there, before the work
        pass
    evaluation = read_evaluation(experiment, dataset_dir, "validation", cases)
    training = parser_of(experiment)
    config = {**for_inference(training.get()), "checkpoint": str(checkpoint)}
    read_recipe(checkpoint, config)
    flips = training.get_parsed_content("patch::flip_axes") if "patch::flip_axes" in training else ()
    hashes = hashes_of(checkpoint)
    bench = Bench(config, evaluation, read_weights(checkpoint), checkpoint, hashes, flips)
    configured, trials, finalists = search(bench)
    chosen = choose(finalists)
    best = max(finalists, key=lambda trial: trial.mean)
    rows = {trial.setting: row_of(trial, best, configured, chosen) for trial in trials}
    shown = [rows[trial.setting] for trial in finalists]
    typer.echo(table(COLUMNS, sorted(shown, key=lambda row: row["seconds a case"])))
    for trial in bench.trials.values():
        if trial.note:
            typer.echo(f"{trial.setting.name}: {trial.note}")
    with atomic_writes(*(output_dir / f"{name}.json" for name in chosen)) as temporaries:
        for trial, temporary in zip(chosen.values(), temporaries, strict=True):
            overlay = overlay_of(trial, rows[trial.setting], bench)
            temporary.write_text(json.dumps(overlay, indent=4) + "\n", encoding="utf-8")
    ordered = sorted(rows.values(), key=lambda row: row["seconds a case"])
    write_csv(output_dir / "speed.csv", ordered, COLUMNS)
    draw(ordered, shown, output_dir / "speed.png")
    typer.echo(
        f"\nMean Dice over {len(configured.dice)} validation cases; loss: against the best; largest loss: of "
        f"a case.\nWrote {', '.join(f'{name}.json' for name in chosen)}, overlays for inference, and "
        f"speed.csv and speed.png with all {len(rows)} settings: {output_dir}"
    )
    if not chosen["fast"].time < configured.time:
        typer.echo(f"Nothing within {LOSSES['fast']:g} of the best is faster than the config as it is.")
    evaluation.cases.finish()


def search(bench: Bench) -> tuple[Trial, list[Trial], list[Trial]]:
    """Try what may pay: first what computes the network, then everything else with the fastest of that.

    Returns:
        The trial of the config as it is, all that worked, and the most promising, which took turns.
    """
    config = bench.config
    device = torch.device(ConfigParser(dict(config)).get_parsed_content("device"))
    with progress(total=1, desc="trying settings") as bar:

        def attempt(*settings: Setting) -> list[Trial]:
            bar.total += len(set(settings) - set(bench.trials))
            return bench.all(settings, bar)

        (configured,) = bench.all([Setting()], bar)
        if math.isnan(configured.mean):
            raise InputError(
                f"there is no foreground in the labels of the {len(configured.dice)} validation cases, nor "
                "in what is predicted, to compare settings by: choose another fold, or more --cases"
            )
        found = attempt(*(Setting(computed=way) for way in ways(config, device)))
        least = max(trial.mean for trial in found) - LOSSES["best"] if found else 0.0
        exact = [trial for trial in found if trial.mean >= least]
        fastest = {min(some, key=lambda trial: trial.time).setting for some in (exact, found) if some}
        if device.type == "cpu" and (half := torch.get_num_threads() // 2):
            for trial in attempt(*(replace(setting, threads=half) for setting in fastest)):
                if trial.time < bench.trials[beside := replace(trial.setting, threads=None)].time:
                    fastest = fastest - {beside} | {trial.setting}
        overlaps = OVERLAPS if "overlap" in config["window_inferer"] else (None,)
        shapes = tiles(bench)
        attempt(*(replace(one, tile=t, overlap=o) for one in fastest for t in shapes for o in overlaps))
        one_way = [trial for trial in bench.trials.values() if not trial.note]
        turned = {trial.setting for trial in choose(one_way).values()} | fastest
        kinds = ORIENTATIONS if bench.flips else (ALL,)
        attempt(*(replace(setting, orientations=kind) for setting in turned for kind in kinds))
        works = [trial for trial in bench.trials.values() if not trial.note]
        final = promising(works, configured)
        bar.total += len(final) * ROUNDS
        for trial in final:
            trial.seconds.clear()
        for _ in range(ROUNDS):
            for trial in final:
                bar.set_postfix_str(f"again: {trial.setting.name}")
                bench.measure(trial)
                bar.update()
    works, final = ([trial for trial in some if not trial.note] for some in (works, final))
    return configured, works, final


def ways(config: Ids, device: torch.device) -> list[tuple[tuple[str, Any], ...]]:
    """Ids that say what computes the network, from slow to fast as a rule.

    ONNX Runtime and compilation, which `python -m bundle benchmark` never found to be the fastest, are not
    among them.
    """
    half = mixed_precision(device) is not None
    mixed = (False, True) if half else (False,)
    ids = [{"runtime": "torch", "amp": amp, "precision": "exact"} for amp in mixed]
    if device.type == "cpu" and find_spec("openvino"):
        ids += [{"runtime": "openvino", "amp": amp, "precision": "exact"} for amp in mixed]
        if int8_files(Path(config["checkpoint"]))[0].is_file():
            ids += [{"runtime": "auto", "amp": half, "precision": "fast"}]
    return [tuple(way.items()) for way in ids]


def tiles(bench: Bench) -> list[Axes]:
    """Legal tiles: multiples of the configured one, and the one that covers a middling case."""
    parser = ConfigParser(dict(bench.config))
    patch = tuple(int(n) for n in parser.get_parsed_content(f"window_inferer::{_tile_key(bench.config)}"))
    shapes = [case[Keys.IMAGE].shape[1:] for case in bench.evaluation.sound()]
    middling = tuple(int(np.median(axis)) for axis in zip(*shapes, strict=True))
    sizes = Sizes(parser.get_parsed_content("network_def"))
    window = sizes.output(patch)
    wanted = [tuple(round(factor * n) for n in window) for factor in TILES]
    if np.prod(middling) <= LARGEST_TILE * np.prod(window):
        wanted.append(middling)
    return list(dict.fromkeys(sizes.covering(size, patch) for size in wanted))


def front(trials: Sequence[Trial]) -> list[Trial]:
    """The Pareto front: trials that no faster one beats, from fast to slow."""
    kept: list[Trial] = []
    for trial in sorted(trials, key=lambda trial: (trial.time, -trial.mean)):
        if not kept or trial.mean > kept[-1].mean:
            kept.append(trial)
    return kept


def within(trials: Sequence[Trial], loss: float) -> list[Trial]:
    """The trials that lose at most so much against the best, from fast to slow."""
    best = max(trial.mean for trial in trials)
    near = [trial for trial in trials if trial.mean >= best - loss]
    return sorted(near, key=lambda trial: trial.time)


def promising(trials: Sequence[Trial], configured: Trial) -> list[Trial]:
    """Trials that are worth other rounds: the front, the fastest within each loss, and the configured."""
    fastest = [trial for loss in LOSSES.values() for trial in within(trials, loss)[:FASTEST]]
    return list({trial.setting: trial for trial in (configured, *front(trials), *fastest)}.values())


def choose(trials: Sequence[Trial]) -> dict[str, Trial]:
    """The fastest trial within each of LOSSES."""
    return {name: within(trials, loss)[0] for name, loss in LOSSES.items()}


def row_of(trial: Trial, best: Trial, configured: Trial, chosen: Mapping[str, Trial]) -> Row:
    """A row of the table."""
    # a case says nothing where no foreground is asked for and none is found, which is right
    losses = np.nan_to_num(best.dice, nan=1.0) - np.nan_to_num(trial.dice, nan=1.0)
    return {
        "setting": trial.setting.name,
        "auto took": trial.taken or None,
        "dice": trial.mean,
        "loss": best.mean - trial.mean,
        "largest loss": float(losses.max()),
        "seconds a case": trial.time,
        "times as fast": configured.time / trial.time,
        "overlay": " ".join(name for name, other in chosen.items() if other is trial) or None,
    }


def overlay_of(trial: Trial, row: Row, bench: Bench) -> Ids:
    """What a setting sets, with what it costs and the weights that it was measured with.

    int8 that "auto" left out when it was measured is not allowed: on other images "auto" might take it.
    """
    ids = trial.setting.ids(bench.config, bench.flips)
    if "int8" not in trial.taken and "precision" in ids:
        ids["precision"] = "exact"
    cost = (
        f"Tuned on {len(trial.dice)} validation cases: mean Dice {row['dice']:.4f}, {row['loss']:.4f} below "
        f"the best setting, {row['largest loss']:.4f} in the worst case; {row['seconds a case']:.3g} s a "
        f"case, {row['times as fast']:.2f} times as fast as configured."
    )
    check = {"_target_": "scripts.recipe.check_recipe", "_desc_": cost, "checkpoint": "@checkpoint"}
    return {"recipe": {**check, "tuned_for": list(bench.hashes)}, **ids}


def draw(rows: Sequence[Row], turned: Sequence[Row], path: Path) -> None:
    """Save Dice against seconds a case, those that took turns with their front, the overlays by name.

    Args:
        rows: of `row_of`, all.
        turned: those of them that were timed in turns.
        path: the PNG to write.
    """
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
    turned = sorted(turned, key=lambda row: row["seconds a case"])
    once = [row for row in rows if row not in turned]
    seconds, dice = ([row[name] for row in turned] for name in ("seconds a case", "dice"))
    best = np.maximum.accumulate(dice)
    axis.scatter(
        [row["seconds a case"] for row in once],
        [row["dice"] for row in once],
        s=14,
        color="#bbbbbb",
        label="timed once",
    )
    axis.scatter(seconds, dice, s=24, color="#0072b2", label="timed in turns")
    axis.step(seconds, best, where="post", color="#0072b2", label="their Pareto front")
    for row in turned:
        configured = row["setting"] == AS_CONFIGURED
        names = (row["overlay"] or "").split() + [AS_CONFIGURED] * configured
        if names:
            place = row["seconds a case"], row["dice"]
            axis.scatter(*place, s=40, color="#d55e00", zorder=3)
            offset = (0, -16) if names == [AS_CONFIGURED] else (0, 8)
            axis.annotate(", ".join(names), place, xytext=offset, textcoords="offset points", ha="center")
    as_it_is = [row["dice"] for row in turned if row["setting"] == AS_CONFIGURED]
    low = min([*as_it_is, max(min(row["dice"] for row in rows), best[-1] - 4 * LOSSES["fast"])])
    room = 0.05 * (best[-1] - low)
    axis.set_ylim(low - room - 0.001, best[-1] + room + 0.002)
    axis.margins(x=0.1)
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter("{x:g}")
    axis.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    axis.set_xlabel("seconds a case")
    axis.set_ylabel("mean Dice of the validation cases")
    axis.grid(alpha=0.3)
    axis.legend(loc="lower right")
    save_figure(figure, path)


def _tile_key(config: Ids) -> str:
    """What the inferer of a config calls its tile."""
    return "tile_size" if "tile_size" in config["window_inferer"] else "roi_size"


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """So many threads of PyTorch for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
