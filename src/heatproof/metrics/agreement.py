"""Agreement: how alike are two maps of the same image?

Each function takes two batches of maps (or of ranks) and returns one float64 for each pair. It is symmetric in the two
maps. Neither direction is better: two good methods agree, and so do two that look at nothing but edges. After the model is
randomised, a low value is required.
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from heatproof import checks
from heatproof.errors import InputError

RESULTS_VERSION = 1
CELL = 16  # pixels of a HOG cell's side
BLOCK = 3  # cells of a HOG block's side
ORIENTATIONS = 9  # of 20 degrees
HOG_CLIP, HOG_EPSILON = 0.2, 1e-5


def spearman(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """Spearman's rank correlation over all pixels of two maps, ties by mid-ranks; neither end is better.

    Args:
        a: (N, H, W) maps.
        b: (N, H, W) other maps of the same images.

    Returns:
        (N,), in [-1, 1]: 1 for the same order of pixels, about 0 for unrelated maps; NaN where a map is constant or not
        finite.

    >>> spearman([[[1.0, 2.0], [3.0, 4.0]]], [[[1.0, 2.0], [4.0, 3.0]]]).round(12)
    array([0.8])
    """
    first, second = (_centred_ranks(_rows(maps)) for maps in _pair(a, b))
    return _cosines(first, second)


def abs_spearman(a: ArrayLike, b: ArrayLike, centre: float = 0.0) -> NDArray[np.float64]:
    """Spearman's rank correlation of the distances |centre - value| of two maps; neither end is better.

    With centre 0 the correlation of the absolute values, blind to the sign; with centre 0.5, for masks in (0, 1), that of
    how decided the mask is, the form of the masking-based saliency code.

    Args:
        a: (N, H, W) maps.
        b: (N, H, W) other maps of the same images.
        centre: the value that says nothing.

    Returns:
        (N,), in [-1, 1]; NaN where the distances of a map are constant or not finite.

    Reference:
        Adebayo et al.: "Sanity checks for saliency maps", NeurIPS 2018, arXiv:1810.03292.

    >>> abs_spearman([[[1.0, 2.0], [3.0, 4.0]]], [[[-1.0, -2.0], [-3.0, -4.0]]]).round(12)
    array([1.])
    """
    first, second = _pair(a, b)
    return spearman(np.abs(centre - first), np.abs(centre - second))


def spearman_matrix(maps: ArrayLike) -> NDArray[np.float64]:
    """`spearman` of every pair of methods, each map ranked once; neither end is better.

    Args:
        maps: (N, M, H, W): M methods' maps of each image.

    Returns:
        (N, M, M), in [-1, 1], symmetric, 1 on the diagonal; NaN in the row and column of a map that is constant or not
        finite.

    >>> maps = np.array([[[[1.0, 2.0], [3.0, 4.0]], [[2.0, 1.0], [0.0, -1.0]], [[5.0, 5.0], [5.0, 5.0]]]])
    >>> spearman_matrix(maps).round(12)[0]
    array([[ 1., -1., nan],
           [-1.,  1., nan],
           [nan, nan, nan]])
    """
    array = np.asarray(maps, dtype=np.float64)
    checks.shapes("N M H W", maps=array)
    return np.array([_matrix(_rows(image)) for image in array]).reshape(len(array), *[array.shape[1]] * 2)


def top_k_overlap(a_ranks: ArrayLike, b_ranks: ArrayLike, fraction: float = 0.1) -> NDArray[np.float64]:
    """Share of the k most important pixels that two maps have in common; neither end is better.

    k is the fraction of the pixels, rounded down, at least 1. Unrelated maps share k / (H W) on average. Ties count in the
    order in which the ranks break them.

    Args:
        a_ranks: (N, H, W) ranks, 0 = most important.
        b_ranks: (N, H, W) ranks of the same images by another method.
        fraction: which share of the pixels is looked at, in (0, 1].

    Returns:
        (N,), in [0, 1].

    Raises:
        InputError: a fraction outside (0, 1].

    >>> ranks = np.array([[[0, 1], [2, 3]]])
    >>> top_k_overlap(ranks, ranks[:, :, ::-1], fraction=0.25), top_k_overlap(ranks, ranks[:, :, ::-1], fraction=0.5)
    (array([0.]), array([1.]))
    """
    first, second, k = _most_important(a_ranks, b_ranks, fraction)
    shares: NDArray[np.float64] = (first & second).sum(axis=(1, 2)) / k
    return shares


def top_k_iou(a_ranks: ArrayLike, b_ranks: ArrayLike, fraction: float = 0.1) -> NDArray[np.float64]:
    """Intersection over union of the k most important pixels of two maps; neither end is better.

    With o = `top_k_overlap`, it is o / (2 - o).

    Args:
        a_ranks: (N, H, W) ranks, 0 = most important.
        b_ranks: (N, H, W) ranks of the same images by another method.
        fraction: which share of the pixels is looked at, in (0, 1].

    Returns:
        (N,), in [0, 1].

    Raises:
        InputError: a fraction outside (0, 1].

    >>> top_k_iou([[[0, 1, 2, 3]]], [[[0, 3, 1, 2]]], fraction=0.5).round(4)
    array([0.3333])
    """
    overlap = top_k_overlap(a_ranks, b_ranks, fraction)
    result: NDArray[np.float64] = overlap / (2 - overlap)
    return result


def unit_scaled(maps: ArrayLike) -> NDArray[np.float64]:
    """Each map divided by its largest absolute value, so that it lies in [-1, 1] with 0 where it was.

    Args:
        maps: (N, H, W).

    Returns:
        (N, H, W), a new array; a map of zeros stays one; NaN throughout where a value is not finite.

    >>> unit_scaled([[[-4.0, 2.0]], [[0.0, 0.0]]])
    array([[[-1. ,  0.5]],
    <BLANKLINE>
           [[ 0. ,  0. ]]])
    """
    array = np.array(maps, dtype=np.float64)
    checks.shapes("N H W", maps=array)
    array[~np.isfinite(array).all(axis=(1, 2))] = np.nan
    largest = np.abs(array).max(axis=(1, 2), keepdims=True)
    return array / np.where(largest == 0, 1.0, largest)


def ssim(
    a: ArrayLike, b: ArrayLike, *, data_range: float = 2.0, window: int = 5, k1: float = 0.01, k2: float = 0.03
) -> NDArray[np.float64]:
    """Structural similarity of two maps: means, variances and covariance in small windows; neither end is better.

    The mean over all windows that lie inside the map, each pixel of a window counting the same, with sample (n - 1)
    variances. The value depends on the maps' scale: bring them to one first, as with `unit_scaled`, whose range is 2. It is
    made for pictures: a map and its negative can score above 0, where windows have means of opposite signs as well.

    Args:
        a: (N, H, W) maps.
        b: (N, H, W) other maps of the same images.
        data_range: largest minus smallest value that a map can have, above 0.
        window: side of the windows in pixels, odd, at most H and W.
        k1: weight of the constant that steadies the means.
        k2: weight of the constant that steadies the variances.

    Returns:
        (N,), in [-1, 1]: 1 for equal maps, also constant ones; NaN where a map is not finite.

    Raises:
        InputError: a window that is even or does not fit, or a range that is not positive.

    Reference:
        Wang, Bovik, Sheikh, Simoncelli: "Image quality assessment: from error visibility to structural similarity",
        IEEE Transactions on Image Processing 13 (2004).

    >>> map_ = np.arange(25.0).reshape(1, 5, 5) / 12 - 1
    >>> ssim(map_, map_).round(12), (ssim(map_, -map_) < 0).item()
    (array([1.]), True)
    """
    first, second = _pair(a, b)
    height, width = first.shape[1:]
    if window % 2 == 0 or not 3 <= window <= min(height, width):
        raise InputError(f"window: {window} must be odd and lie between 3 and the maps' size {height} x {width}")
    if not data_range > 0:
        raise InputError(f"data_range: {data_range!r} must be above 0")
    first, second = (np.where(np.isfinite(maps), maps, np.nan) for maps in (first, second))
    mean_a, mean_b = _window_means(first, window), _window_means(second, window)
    unbiased = window**2 / (window**2 - 1)
    variance_a = unbiased * (_window_means(first * first, window) - mean_a * mean_a)
    variance_b = unbiased * (_window_means(second * second, window) - mean_b * mean_b)
    covariance = unbiased * (_window_means(first * second, window) - mean_a * mean_b)
    c1, c2 = (k1 * data_range) ** 2, (k2 * data_range) ** 2
    similarity = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    similarity /= (mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2)
    means: NDArray[np.float64] = similarity.mean(axis=(1, 2))
    return means


def hog(maps: ArrayLike, cell: int = CELL) -> NDArray[np.float64]:
    """Histograms of oriented gradients: what the edges of a map look like, cell by cell.

    Central differences (0 at the border), directions without sign in 9 bins of 20 degrees, each pixel's magnitude in one
    bin; a cell's sums divided by its pixels; blocks of 3 x 3 cells brought to length 1, clipped at 0.2 and again to length 1.

    Args:
        maps: (N, H, W).
        cell: side of a cell in pixels; 3 x 3 cells must fit into the map.

    Returns:
        (N, F), F = blocks * 81; zeros for a map without edges, NaN for one that is not finite.

    Raises:
        InputError: maps too small for a block.

    Reference:
        Dalal, Triggs: "Histograms of oriented gradients for human detection", CVPR 2005.

    >>> hog(np.zeros((2, 64, 48))).shape
    (2, 162)
    """
    array = np.asarray(maps, dtype=np.float64)
    sizes = checks.shapes("N H W", maps=array)
    down, across = sizes["H"] // cell, sizes["W"] // cell
    if cell < 1 or min(down, across) < BLOCK:
        raise InputError(f"maps: {sizes['H']} x {sizes['W']} is too small for {BLOCK} x {BLOCK} cells of {cell} pixels")
    finite = np.isfinite(array.reshape(len(array), -1)).all(axis=1, keepdims=True)
    cells = _cell_histograms(np.where(np.expand_dims(finite, 2), array, 0.0), cell, down, across)
    windows = sliding_window_view(cells, (BLOCK, BLOCK), axis=(1, 2))  # (N, down', across', bins, 3, 3)
    blocks = np.moveaxis(windows, 3, -1).reshape(len(array), -1, BLOCK * BLOCK * ORIENTATIONS)
    blocks = _unit_length(np.minimum(_unit_length(blocks), HOG_CLIP))
    return np.where(finite, blocks.reshape(len(array), -1), np.nan)


def hog_correlation(a: ArrayLike, b: ArrayLike, cell: int = CELL) -> NDArray[np.float64]:
    """Pearson correlation of two maps' `hog` vectors: are the same edges in the same places? Neither end is better.

    Args:
        a: (N, H, W) maps.
        b: (N, H, W) other maps of the same images.
        cell: side of a HOG cell in pixels.

    Returns:
        (N,), in [-1, 1]; NaN where a map has no edge, or is not finite.

    Reference:
        Adebayo et al.: "Sanity checks for saliency maps", NeurIPS 2018, arXiv:1810.03292.

    >>> map_ = np.arange(48.0 * 48).reshape(1, 48, 48) % 7
    >>> hog_correlation(map_, 2 * map_).round(6)
    array([1.])
    """
    vectors = (hog(maps, cell) for maps in _pair(a, b))
    return _cosines(*(vector - vector.mean(axis=1, keepdims=True) for vector in vectors))


def cell_for(size: tuple[int, int]) -> int:
    """Side of the HOG cells for maps of `size` (H, W): 16 pixels where a block fits, else a quarter of the shorter side.

    >>> cell_for((224, 224)), cell_for((32, 32))
    (16, 8)
    """
    shorter = min(size)
    return CELL if shorter >= BLOCK * CELL else max(1, shorter // (BLOCK + 1))


def _pair(a: ArrayLike, b: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    checks.shapes("N H W", a=first, b=second)
    return first, second


def _rows(maps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Maps as rows; one that is not finite becomes constant, so that what is correlated with it is undefined."""
    rows = maps.reshape(len(maps), -1)
    return np.where(np.isfinite(rows).all(axis=1, keepdims=True), rows, 0.0)


def _centred_ranks(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks of the values in each row (M, D), ties by mid-ranks, minus the mean of all ranks.

    As scipy.stats.rankdata, in a quarter of its time: mid-ranks do not ask in which order a sort leaves ties.
    """
    ranks = np.empty_like(rows)
    for row, out in zip(rows, ranks, strict=True):
        order = np.argsort(row)
        ordered = row[order]
        starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
        ends = np.append(starts[1:], len(row))
        out[order] = np.repeat((starts + ends - len(row)) / 2, ends - starts)
    return ranks


def _cosines(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cosine of the angle between vectors (N, D): of centred ones, their correlation (N,); NaN where one is zero."""
    return _normalised((a * b).sum(axis=1), (a**2).sum(axis=1) * (b**2).sum(axis=1))


def _matrix(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Spearman's correlation of every two rows (M, D)."""
    ranks = _centred_ranks(rows)
    # Ranks minus their mean are whole or half numbers: these sums are exact, in whatever order they are taken.
    products = np.einsum("id,jd->ij", ranks, ranks)
    return _normalised(products, np.outer(products.diagonal(), products.diagonal()))


def _normalised(products: NDArray[np.float64], squares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Products of vectors divided by the lengths, whose squares are multiplied; NaN where they are 0."""
    cosines: NDArray[np.float64] = np.divide(
        products, np.sqrt(squares), out=np.full_like(products, np.nan), where=squares > 0
    )
    return np.clip(cosines, -1.0, 1.0)  # rounding may lead beyond


def _most_important(
    a_ranks: ArrayLike, b_ranks: ArrayLike, fraction: float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], int]:
    first, second = np.asarray(a_ranks), np.asarray(b_ranks)
    checks.shapes("N H W", a_ranks=first, b_ranks=second)
    if not 0 < fraction <= 1:
        raise InputError(f"fraction: {fraction!r} must lie in (0, 1]")
    k = max(1, int(np.floor(fraction * first[0].size + 1e-9))) if len(first) else 1
    return first < k, second < k, k


def _window_means(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Means over all windows that lie inside."""
    margin = window // 2
    means: NDArray[np.float64] = ndimage.uniform_filter(values, size=(1, window, window))
    return means[:, margin:-margin, margin:-margin]


def _cell_histograms(maps: NDArray[np.float64], cell: int, down: int, across: int) -> NDArray[np.float64]:
    """Mean magnitude in each direction's bin, (N, down, across, bins)."""
    vertical, horizontal = np.zeros_like(maps), np.zeros_like(maps)
    vertical[:, 1:-1] = maps[:, 2:] - maps[:, :-2]
    horizontal[:, :, 1:-1] = maps[:, :, 2:] - maps[:, :, :-2]
    magnitude = np.hypot(vertical, horizontal)
    degrees = np.rad2deg(np.arctan2(vertical, horizontal)) % 180
    # Rounding may give 180 degrees, which is 0.
    bins = (degrees / (180 / ORIENTATIONS)).astype(np.int64) % ORIENTATIONS
    cells = np.arange(len(maps) * down * across).reshape(len(maps), down, 1, across, 1)
    inside = (slice(None), slice(down * cell), slice(across * cell))
    shape = (len(maps), down, cell, across, cell)
    places = cells * ORIENTATIONS + bins[inside].reshape(shape)
    sums = np.bincount(places.ravel(), magnitude[inside].ravel(), minlength=cells.size * ORIENTATIONS)
    return sums.reshape(len(maps), down, across, ORIENTATIONS) / cell**2


def _unit_length(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    scaled: NDArray[np.float64] = vectors / np.sqrt((vectors**2).sum(axis=-1, keepdims=True) + HOG_EPSILON**2)
    return scaled
