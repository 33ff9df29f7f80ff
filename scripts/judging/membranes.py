"""The measures of the ISBI 2012 challenge: cells in a section, told apart by membranes.

Sources: Arganda-Carreras et al. 2015, Front. Neuroanat. 9:142 (V_Rand, V_Info, and the measures of the first
years); Jain et al. 2010, "Boundary learning by optimization with topological constraints", CVPR (warping);
the challenge's implementation, Trainable Weka Segmentation of Fiji, for steps that the papers leave open.

A proposal is the probability of "cell". Above a threshold a pixel is cell, else membrane; cells are
4-connected, membranes 8-connected. Each score is the best over the thresholds:

- `v_rand`, `v_info`: the cells of the proposal grow into its membranes until lines of one pixel part them
  (a watershed), so that the width of a membrane does not count. Pixels that are membrane in the truth are
  left out; a pixel that is membrane in the proposal alone is a region of its own.
- `rand_error`: 1 - V_Rand of the cells as they are, without growing.
- `pixel_error`: 1 - F-score of the cell pixels.
- `warping_error`: the truth is warped towards the proposal: pixels flip where that changes no topology. What
  still differs then is wrong topology; the share of all pixels that are splits or mergers is the error. A
  membrane that does not touch the true one at all is both.

Departures:

- The best threshold is sought for each section; the challenge averages over its sections at each threshold
  first. `membrane_curves` gives the values from which `python -m bundle score` does that as well.
- The thresholds are 0.1 to 0.9; Fiji tries 0 and 1, too. One that changes no pixel is not tried again.
- `rand_error` counts a pixel's pair with itself, too, as V_Rand does.
- Where growing cells meet, the line may lie a pixel beside Fiji's.
- V_Info is 1 where prediction and truth are both one region, which Fiji scores 0.

Compared once with Fiji's WarpingError and WatershedTransform2D, without the rest of ImageJ, on 12 probability
maps of EM sections, good and bad ones: warping left as many splits, mergers and others at each threshold, and
V_Rand and V_Info differed by less than 0.001, by the lines between cells alone.

As in Fiji's examples, splits are sought within SPLIT_RADIUS of a pixel, and the pixels of splits and mergers
are counted, not the places where they happen.

Conventions: without a cell in the truth all scores are NaN, the case says nothing. Without a membrane the
truth is one cell, scored as any other. What nobody annotated is membrane in both, no cell grows through it,
and its pixels count nowhere.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from skimage.measure import label
from skimage.segmentation import watershed

from scripts.errors import InputError
from scripts.judging.case import Case
from scripts.judging.instances import contingency

#: Scores of membranes, in the order of the tables.
MEMBRANE_SCORES = ("v_rand", "v_info", "rand_error", "pixel_error", "warping_error")

#: Scores of which the highest is the best; of the others it is the lowest.
HIGHER_IS_BETTER = ("v_rand", "v_info")

#: Thresholds of the probability of "cell".
THRESHOLDS = tuple(round(0.1 * step, 1) for step in range(1, 10))

#: Pixels around a pixel in which it is sought whether taking the pixel away splits a cell.
SPLIT_RADIUS = 20

#: How far a probability may lie outside [0, 1] by rounding.
PROBABILITY_TOLERANCE = 1e-3

# The neighbours of a pixel, once round it: north, north-east, ...
_RING = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))


def _is_simple(ring: int) -> bool:
    """Whether a pixel with these cell neighbours (a bit each, in the order of _RING) may flip.

    Yokoi's number counts the 4-connected cells that touch the pixel within its 8 neighbours; a pixel is
    simple where it is 1 (Yokoi et al. 1975, Comput. Graph. Image Process. 4:63).
    """
    bits = [ring >> place & 1 for place in range(8)]
    return sum(bits[i] - bits[i] * bits[i + 1] * bits[(i + 2) % 8] for i in range(0, 8, 2)) == 1


_SIMPLE = tuple(_is_simple(ring) for ring in range(256))


def v_rand(labels: np.ndarray, truth: np.ndarray) -> float:
    """V_Rand, the foreground-restricted Rand F-score: sum p_ij^2 / (0.5 sum s_i^2 + 0.5 sum t_j^2).

    Args:
        labels: region numbers of the proposal, any shape; each pixel with 0 is a region of its own.
        truth: region numbers of the truth, the same shape; pixels with 0 are left out.

    Returns:
        The score in (0, 1], best 1; NaN for a truth of zeros.

    Raises:
        InputError: maps of two shapes, fractions, or negative numbers.
    """
    shared, found, true, alone = _regions(labels, truth)
    if not true.size:
        return math.nan
    return float(2 * ((shared**2).sum() + alone) / ((found**2).sum() + alone + (true**2).sum()))


def v_info(labels: np.ndarray, truth: np.ndarray) -> float:
    """V_Info, the foreground-restricted information score: 2 I(S; T) / (H(S) + H(T)).

    Args:
        labels: region numbers of the proposal, any shape; each pixel with 0 is a region of its own.
        truth: region numbers of the truth, the same shape; pixels with 0 are left out.

    Returns:
        The score in [0, 1], best 1; 1 where both are one region; NaN for a truth of zeros.

    Raises:
        InputError: maps of two shapes, fractions, or negative numbers.
    """
    shared, found, true, alone = _regions(labels, truth)
    if not true.size:
        return math.nan
    total = true.sum()
    singles = alone / total * math.log(total)  # the entropy of `alone` regions of one pixel

    def entropy(sizes: np.ndarray) -> float:
        return float(-(sizes / total * np.log(sizes / total)).sum())

    apart = entropy(found) + singles + entropy(true)  # H(S) + H(T)
    together = entropy(shared) + singles  # H(S, T)
    return 2 * max(apart - together, 0.0) / apart if apart > 0 else 1.0


def _regions(labels: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Pixels that regions share, of the regions of the proposal and of the truth, and those in no region."""
    labels, truth = np.asarray(labels), np.asarray(truth)
    if labels.shape == truth.shape:  # contingency refuses others
        labels, truth = labels[truth != 0], truth[truth != 0]
    table = contingency(labels, truth)
    shared, found, true = (
        sizes.astype(float) for sizes in (table.shared, table.pred_sizes, table.true_sizes)
    )
    return shared, found, true, float(true.sum() - found.sum())


def thinned(cells: np.ndarray, annotated: np.ndarray | None = None) -> np.ndarray:
    """The cells, numbered, grown into the membranes until lines of one pixel part them.

    Args:
        cells: boolean, (H, W).
        annotated: boolean, (H, W), where they may grow; None: everywhere.

    Returns:
        Region numbers (H, W), 0 on the lines. A picture without any cell is one region, as in Fiji.
    """
    numbered = label(cells, connectivity=1)
    if not numbered.any():
        return np.ones_like(numbered)
    flat = np.zeros(cells.shape, np.uint8)
    return watershed(flat, numbered, connectivity=1, mask=annotated, watershed_line=True)


def cells_apart(labels: np.ndarray) -> np.ndarray:
    """A numbered map as cells and membranes: where two numbers touch, a line of one pixel comes between.

    Args:
        labels: region numbers, 0 membrane, (H, W).

    Returns:
        Boolean (H, W), True: cell. Of one number alone it is the map itself.
    """
    cells = labels != 0
    for here, there in ((np.s_[:-1], np.s_[1:]), (np.s_[:, :-1], np.s_[:, 1:])):
        cells[here] &= (labels[here] == labels[there]) | (labels[there] == 0)
    return cells


class Warping(NamedTuple):
    """What is left to correct after warping.

    Attributes:
        warped: the warped truth, boolean, (H, W).
        splits: pixels of the warped truth that keep a cell together where the proposal cuts it.
        mergers: pixels of the warped truth that keep cells apart where the proposal joins them.
        others: other pixels that differ: holes and objects added or lost.
    """

    warped: np.ndarray
    splits: int
    mergers: int
    others: int


def warp(cells: np.ndarray, truth: np.ndarray, confidence: np.ndarray | None = None) -> Warping:
    """Warp the truth towards a proposal by flipping simple points (Jain et al. 2010, section 3).

    Pixels that differ flip one by one, the most confident first, in sweeps until none can flip. Outside the
    picture is membrane.

    Args:
        cells: the proposal, boolean, (H, W), True: cell.
        truth: boolean, (H, W), True: cell.
        confidence: how sure the proposal is of each pixel, (H, W); None: of all alike. Of equals the one with
            the lower column, then the lower row comes first.

    Returns:
        The warped truth and what still differs. A pixel that differs is a merger or split where two cells of
        the warped truth are among its 8 neighbours, and a split where taking it away cuts a cell.
    """
    proposal, warped = np.pad(cells, 1), np.pad(truth, 1)  # True: cell; the rim is membrane
    wrong = proposal != warped
    rows, columns = np.nonzero(wrong)
    sure = np.zeros(len(rows)) if confidence is None else confidence[rows - 1, columns - 1]
    order = np.lexsort((rows, columns, -sure))
    width = warped.shape[1]
    places = (rows * width + columns)[order].tolist()  # of each rank
    rank_at = np.full(warped.size, -1)
    rank_at[places] = np.arange(len(places))
    ranks = rank_at.tolist()

    ring = np.zeros(warped.shape, np.uint8)
    for bit, (down, right) in enumerate(_RING):
        ring |= np.roll(warped, (-down, -right), (0, 1)).astype(np.uint8) << bit
    rings = ring.ravel().tolist()
    # flipping a pixel toggles, in the ring of each of its neighbours, the bit that looks back at it
    steps = [(down * width + right, 1 << (bit + 4) % 8) for bit, (down, right) in enumerate(_RING)]

    sweep = [rank for rank, place in enumerate(places) if _SIMPLE[rings[place]]]
    flipped = []
    while sweep:
        heapq.heapify(sweep)
        later: list[int] = []
        while sweep:
            rank = heapq.heappop(sweep)
            place = places[rank]
            if ranks[place] < 0 or not _SIMPLE[rings[place]]:
                continue
            flipped.append(place)
            ranks[place] = -1
            for step, bit in steps:
                neighbour = place + step
                rings[neighbour] ^= bit
                other = ranks[neighbour]
                if other >= 0 and _SIMPLE[rings[neighbour]]:
                    if other > rank:
                        heapq.heappush(sweep, other)
                    else:
                        later.append(other)  # its turn in this sweep is over
        sweep = later
    warped.ravel()[flipped] ^= True
    splits, mergers = _splits_and_mergers(warped, proposal != warped)
    others = int((proposal != warped).sum()) - splits - mergers
    return Warping(warped[1:-1, 1:-1], splits, mergers, others)


def _splits_and_mergers(warped: np.ndarray, wrong: np.ndarray) -> tuple[int, int]:
    """Pixels of each kind among those that differ after warping; the arrays have a rim of membrane."""
    numbered = label(warped, connectivity=1)
    rows, columns = np.nonzero(wrong)
    near = np.stack([numbered[rows + down, columns + right] for down, right in _RING], axis=1)  # (pixels, 8)
    low = np.where(near > 0, near, numbered.max() + 1).min(axis=1, initial=numbered.max() + 1)
    two_cells = near.max(axis=1, initial=0) > low
    is_cell = warped[rows, columns]
    # only a pixel with membrane beside it can cut the cell that it belongs to
    candidates = is_cell & ~two_cells & (near == 0).any(axis=1) & (near > 0).any(axis=1)
    cuts = sum(_cuts(warped, *place) for place in zip(rows[candidates], columns[candidates], strict=True))
    return int((is_cell & two_cells).sum()) + cuts, int((~is_cell & two_cells).sum())


def _cuts(warped: np.ndarray, row: int, column: int) -> bool:
    """Whether the cells around a pixel fall apart, within SPLIT_RADIUS, when it is taken away."""
    top, left = max(row - SPLIT_RADIUS, 0), max(column - SPLIT_RADIUS, 0)
    window = warped[top : row + SPLIT_RADIUS + 1, left : column + SPLIT_RADIUS + 1].copy()
    row, column = row - top, column - left
    window[row, column] = False
    numbered, _ = ndimage.label(window)
    near = numbered[row - 1 : row + 2, column - 1 : column + 2]
    return len(np.unique(near[near > 0])) > 1


def warping_error(
    cells: np.ndarray,
    truth: np.ndarray,
    confidence: np.ndarray | None = None,
    annotated: np.ndarray | None = None,
) -> float:
    """Share of the pixels that are splits or mergers after warping; arguments as for `warp`.

    Args:
        cells: see `warp`.
        truth: see `warp`.
        confidence: see `warp`.
        annotated: boolean, (H, W), the pixels to count; None: all. The others are membrane in both.

    Returns:
        The error in [0, 1], best 0; NaN for a truth without a cell.
    """
    if not truth.any():
        return math.nan
    result = warp(cells, truth, confidence)
    counted = truth.size if annotated is None else int(annotated.sum())
    return (result.splits + result.mergers) / counted


def section(name: str, cells: np.ndarray, truth: np.ndarray, mask: np.ndarray | None = None) -> Case:
    """The case of a section of cells and membranes.

    Args:
        name: id of the case.
        cells: probability of cell, in [0, 1], or boolean, (H, W).
        truth: 0 and 1 or boolean, (H, W), 1: cell.
        mask: boolean, (H, W), where somebody annotated; None: everywhere.

    Raises:
        InputError: arrays of two shapes or not 2D; probabilities or truth out of range.
    """
    cells, truth = np.asarray(cells), np.asarray(truth)
    if cells.shape != truth.shape or truth.ndim != 2:
        raise InputError(
            f"cell_probability has the shape {list(cells.shape)} and truth {list(truth.shape)}: "
            "give both as (H, W) on one grid"
        )
    cells = cells.astype(float)
    wrong = cells[~(np.abs(cells - 0.5) <= 0.5 + PROBABILITY_TOLERANCE)]  # so is NaN
    if wrong.size:
        raise InputError(f"cell_probability holds {wrong[0]:.4g}: give numbers from 0 to 1")
    known = truth if mask is None else truth[mask]
    others = known[(known != 0) & (known != 1)]
    if others.size:
        raise InputError(f"truth holds {others[0]:.4g}: give 0 for membrane and 1 for cell")
    return Case(name, cells > 0.5, truth == 1, mask, np.stack([1 - cells, cells]))


def membrane_curves(
    case: Case, thresholds: Sequence[float] = THRESHOLDS, measures: Sequence[str] = MEMBRANE_SCORES
) -> dict[str, np.ndarray]:
    """The scores of a section at every threshold.

    Args:
        case: of `section`: the last class of its probabilities is the cell.
        thresholds: a pixel is cell where its probability is above the threshold; each in [0, 1).
        measures: which of MEMBRANE_SCORES to compute.

    Returns:
        An array (thresholds,) for each measure, all NaN for a truth without a cell.

    Raises:
        InputError: thresholds out of range; an unknown measure.
    """
    thresholds = tuple(thresholds)
    if not thresholds or not all(0 <= threshold < 1 for threshold in thresholds):
        raise InputError(f"thresholds are {thresholds}: give one or more numbers from 0 to below 1")
    unknown = [name for name in measures if name not in MEMBRANE_SCORES]
    if unknown:
        raise InputError(f"measures name {unknown[0]!r}: give some of {', '.join(MEMBRANE_SCORES)}")
    truth = case.cleared()[1].astype(bool)
    probability = case.pred.astype(float) if case.probabilities is None else case.probabilities[-1]
    curves = {name: np.full(len(thresholds), math.nan) for name in measures}
    if not truth.any():
        return curves
    true_cells = label(truth, connectivity=1)
    before = None
    for index, threshold in enumerate(thresholds):
        cells = probability > threshold
        if case.mask is not None:
            cells &= case.mask
        if before is not None and np.array_equal(cells, before):
            for curve in curves.values():
                curve[index] = curve[index - 1]
            continue
        before = cells
        confidence = np.abs(probability - threshold).astype(np.float32)  # as Fiji sorts it
        grown = thinned(cells, case.mask) if {"v_rand", "v_info"} & set(measures) else cells
        ways: dict[str, Callable[[], float]] = {
            "v_rand": partial(v_rand, grown, true_cells),
            "v_info": partial(v_info, grown, true_cells),
            "rand_error": partial(_rand_error, cells, true_cells),
            "pixel_error": partial(_pixel_error, cells, truth),
            "warping_error": partial(warping_error, cells, truth, confidence, case.mask),
        }
        for name in measures:  # nothing is computed that no measure needs
            curves[name][index] = ways[name]()
    return curves


def _rand_error(cells: np.ndarray, true_cells: np.ndarray) -> float:
    return 1 - v_rand(label(cells, connectivity=1), true_cells)


def _pixel_error(cells: np.ndarray, truth: np.ndarray) -> float:
    return (cells != truth).sum() / (cells.sum() + truth.sum())  # 1 - F-score


def best_membrane_scores(
    curves: dict[str, np.ndarray], thresholds: Sequence[float] = THRESHOLDS
) -> dict[str, float]:
    """The best value of each curve, and the lowest "threshold" with the best v_rand where that is among them.

    Args:
        curves: as `membrane_curves` gives them, or their mean over sections.
        thresholds: those of the curves.

    Returns:
        A number for each curve; NaN where it is NaN throughout.
    """
    best = {}
    for name, curve in curves.items():
        index = int(np.argmax(curve if name in HIGHER_IS_BETTER else -curve))
        best[name] = float(curve[index])
        if name == "v_rand":
            threshold = math.nan if math.isnan(best[name]) else float(thresholds[index])
    return best | ({"threshold": threshold} if "v_rand" in best else {})


def membrane_scores(
    case: Case, thresholds: Sequence[float] = THRESHOLDS, measures: Sequence[str] = MEMBRANE_SCORES
) -> dict[str, float]:
    """The best of each score over the thresholds; arguments and errors as for `membrane_curves`.

    Returns:
        A number for each measure, and "threshold", at which v_rand is best.
    """
    return best_membrane_scores(membrane_curves(case, thresholds, measures), thresholds)
