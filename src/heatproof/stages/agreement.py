"""agreement: measure how similar the maps of every two methods are.

Reads all methods' stored maps; writes agreement/agreement.h5 (per image a methods x methods matrix of each similarity),
results.csv (a line for each pair and score) and clustering.json (average linkage on 1 - mean Spearman). No classifier is run.

Similarities: `spearman` of all pixels; `top_k_overlap`, the share of the most important pixels in common; `ssim` of the maps,
each divided by its largest absolute value. Neither direction is better: methods can agree and be wrong together.
"""

import itertools
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from heatproof import artefacts, config, runtime, store
from heatproof.metrics import agreement, statistics
from heatproof.metrics.comparison import Settings, summaries
from heatproof.stages.evaluate import SampledMaps
from heatproof.stages.plan import Artefact
from heatproof.stages.run import Run

FORMAT = "heatproof/agreement"
SCORES = ("spearman", "top_k_overlap", "ssim")
LINE = ("first", "second", "score", "setting", "better", "n", "n_undefined", "mean", "sd", "low", "high")


def plan(run: Run) -> list[Artefact[Any]]:
    """The matrices of all images, and their summary."""
    section = config.section(run.config, "agreement", config.Agreement)
    return _plan(run, section, SampledMaps.of(run, section))


def _plan(run: Run, section: config.Agreement, sampled: SampledMaps) -> list[Artefact[Any]]:
    folder, contents = run.config.outdir / "agreement", sampled.contents()
    origin = {
        "maps": contents,
        "methods": list(contents),
        "data": run.fingerprint("test"),
        "rows": sampled.named_rows(),
        "top_fraction": section.top_fraction,
        "seed": run.config.seed,
        "code": agreement.RESULTS_VERSION,
    }
    summary = {
        "origin": origin,
        "columns": list(LINE),
        "intervals": run.intervals.origin(),
        "code": statistics.RESULTS_VERSION,
    }
    return [Artefact(folder / "agreement.h5", origin, sampled), Artefact(folder / "results.csv", summary, None)]


def run(run: Run) -> None:
    """Computes what is missing or stale of the matrices, and summarises them."""
    section = config.section(run.config, "agreement", config.Agreement)
    sampled = SampledMaps.of(run, section)
    readers = sampled.make()
    matrices, summary = _plan(run, section, sampled)
    if not matrices.is_complete():
        _compare(section, sampled.chosen, readers, matrices)
    if not summary.is_complete():
        _write_results(section, summary, matrices, run.intervals)


def _compare(
    section: config.Agreement,
    rows: NDArray[np.int64],
    readers: dict[str, store.MapReader],
    file: Artefact[Any],
) -> None:
    """Makes the file of matrices."""
    started = time.monotonic()
    columns = [store.Column("index", "int64")]
    columns += [store.Column(score, "float64", (len(readers), len(readers))) for score in SCORES]
    writer = store.RowWriter(
        file.path, columns, rows=len(rows), origin=file.origin, kind=FORMAT, rows_per_shard=section.batch_size
    )
    places = {name: reader.rows_of(rows) for name, reader in readers.items()}
    missing = writer.missing()
    with runtime.progress(sum(b.stop - b.start for b in missing), "agreement") as bar:
        for block in missing:
            chosen = [(reader, places[name][block.start : block.stop]) for name, reader in readers.items()]
            maps = np.stack([reader.maps(here) for reader, here in chosen], axis=1)
            ranks = np.stack([reader.ranks(here) for reader, here in chosen], axis=1)
            # Neither has an order that says anything: a map that is no map, and a constant one.
            without_order = np.stack([reader.flags[here] != 0 for reader, here in chosen], axis=1)
            matrices = _matrices(maps, ranks, without_order, section.top_fraction)
            writer.write(block, {"index": rows[block.start : block.stop], **matrices})
            bar.update(block.stop - block.start)
    writer.finish()
    runtime.record_time(file.path.parent, "agreement", len(rows), started)


def _matrices(
    maps: NDArray[np.float32], ranks: NDArray[np.unsignedinteger], without_order: NDArray[np.bool_], fraction: float
) -> dict[str, NDArray[np.float64]]:
    """Each similarity of every two of M methods' maps (B, M, H, W): (B, M, M)."""
    count = maps.shape[1]
    overlap = np.full((len(maps), count, count), np.nan)
    ssim = overlap.copy()
    unit = [agreement.unit_scaled(maps[:, method]) for method in range(count)]
    for i, j in itertools.combinations_with_replacement(range(count), 2):
        shares = agreement.top_k_overlap(ranks[:, i], ranks[:, j], fraction)
        overlap[:, i, j] = overlap[:, j, i] = np.where(without_order[:, i] | without_order[:, j], np.nan, shares)
        ssim[:, i, j] = ssim[:, j, i] = agreement.ssim(unit[i], unit[j])
    return {"spearman": agreement.spearman_matrix(maps), "top_k_overlap": overlap, "ssim": ssim}


def _write_results(
    section: config.Agreement, summary: Artefact[Any], matrices: Artefact[Any], settings: Settings
) -> None:
    reader = store.RowReader(matrices.path)
    names = matrices.origin["methods"]
    pairs = list(itertools.combinations(range(len(names)), 2))
    lines = []
    for score in SCORES:
        values = reader.read(score)
        setting = f"top={section.top_fraction:g}" if score == "top_k_overlap" else ""
        rows = [values[:, i, j] for i, j in pairs]
        for (i, j), found in zip(pairs, summaries(rows, "image", settings) if rows else [], strict=True):
            lines.append([names[i], names[j], score, setting, "neither", *found])
    tree = summary.path.with_name("clustering.json")
    artefacts.write_csv(summary.path, LINE, lines)
    artefacts.write_json(tree, clustering(names, reader.read("spearman")))
    summary.write(summary.path, tree)


def clustering(names: list[str], spearman: NDArray[np.float64]) -> dict[str, Any]:
    """Average linkage of methods by the distance 1 - mean Spearman over the images where it is defined.

    Args:
        names: of M methods.
        spearman: (N, M, M), NaN where undefined.

    Returns:
        `methods`: those that are clustered; `left_out`: the others, which have no defined correlation with one of them
        (constant maps); `distances` (M', M'), in [0, 2]; `linkage`, as SciPy has it: in each row two clusters, their distance
        and the size of what they form, where numbers from M' on are clusters of earlier rows; `leaf_order`: the names in
        the order in which a dendrogram or an ordered matrix shows them.
    """
    defined = np.isfinite(spearman)
    counts = defined.sum(axis=0)
    sums = np.where(defined, spearman, 0.0).sum(axis=0)
    distances = 1 - np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
    kept = list(range(len(names)))
    while np.isnan(distances[np.ix_(kept, kept)]).any():
        undefined = np.isnan(distances[np.ix_(kept, kept)]).sum(axis=1)
        del kept[int(undefined.argmax())]
    # Rounding may bring a correlation of equal maps above 1.
    chosen = np.maximum(distances[np.ix_(kept, kept)], 0.0)
    np.fill_diagonal(chosen, 0.0)
    linkage = np.empty((0, 4))
    leaves = list(range(len(kept)))
    if len(kept) > 1:
        linkage = hierarchy.linkage(squareform(chosen, checks=False), method="average")
        leaves = hierarchy.leaves_list(linkage).tolist()
    clustered = [names[position] for position in kept]
    return {
        "methods": clustered,
        "left_out": [name for name in names if name not in clustered],
        "distances": chosen.tolist(),
        "linkage": linkage.tolist(),
        "leaf_order": [clustered[leaf] for leaf in leaves],
    }
