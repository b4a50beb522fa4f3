"""report: write one self-contained page with all results.

Reads what the other stages left; writes report/index.html, the figures (report/figures/*.svg, *.png) and their numbers
(report/figures/*.csv), and report/index.json with what the page was made from. Partial results are fine: the page says
what is missing. Nothing is done where nothing has changed.
"""

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from heatproof import artefacts, config, report, runtime, store
from heatproof.errors import MapError
from heatproof.report import Curves, Material, Progress, Retraining, Settings
from heatproof.report.wording import count, listed, percent
from heatproof.stages import learned
from heatproof.stages.results import Results
from heatproof.stages.run import Run

logger = logging.getLogger(__name__)


def run(run: Run) -> None:
    """Makes the page unless it is there and nothing that it shows has changed."""
    folder = run.config.outdir / "report"
    results = Results(run)
    origin = _origin(run.config, results)
    if _is_done(folder, origin) or run.dry_run:
        return
    material = _material(run.config, results)
    made = report.compose(material)
    artefacts.remove_leftovers(folder / "figures")
    for name, content in made.files.items():
        with artefacts.whole_file(folder / "figures" / name) as temporary:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    artefacts.write_text(folder / "index.html", made.html)
    hashes = {name: artefacts.sha256(folder / name) for name in ["index.html", *(f"figures/{n}" for n in made.files)]}
    # Pictures that could not be shown may be there the next time, so such a page is never taken for done.
    is_whole = not (
        material.methods and run.config.report.gallery_images and results.maps.readers and not material.pictures
    )
    artefacts.write_json(folder / "index.json", {"origin": origin if is_whole else None, "files": hashes})
    logger.info("%s: written; open it in a browser", folder / "index.html")


def _is_done(folder: Path, origin: dict[str, Any]) -> bool:
    page = folder / "index.html"
    kept = artefacts.read_json(folder / "index.json")
    if kept is None or not page.is_file():
        logger.info("%s: to be made", page)
        return False
    if kept["origin"] != origin:
        logger.info("%s: results or settings have changed, to be made again", page)
        return False
    changed = [name for name, digest in kept["files"].items() if not _is(folder / name, digest)]
    if changed:
        logger.info("%s: missing or not the file that was made; the page is made again", folder / changed[0])
        return False
    logger.info("%s: complete", page)
    return True


def _is(path: Path, digest: str) -> bool:
    return path.is_file() and artefacts.sha256(path) == digest


def _origin(settings: config.Config, results: Results) -> dict[str, Any]:
    """What decides about the page: settings, every file that it shows, our code and the libraries' versions."""
    digest = hashlib.sha256()
    for path in results.files():
        digest.update(f"{path.relative_to(settings.outdir)}\n".encode())
        for part in _identity(path):
            digest.update(part)
    sources = artefacts.canonical(report.source_texts())
    return {
        "configuration": hashlib.sha256(settings.model_dump_json().encode()).hexdigest(),
        "results": digest.hexdigest(),
        "page": [report.RESULTS_VERSION, hashlib.sha256(sources.encode()).hexdigest()],
        "versions": runtime.versions(),
    }


def _identity(path: Path) -> Iterator[bytes]:
    """What changes with the content of a file; for files of maps and curves their origin and checksums."""
    if not path.is_file():
        yield b"missing"
    elif path.suffix == ".h5":
        try:
            attributes = store.RowReader(path).attributes
            yield artefacts.canonical({name: str(value) for name, value in attributes.items()}).encode()
        except MapError as error:
            yield str(error).encode()
    else:
        yield hashlib.sha256(path.read_bytes()).digest()


def _material(settings: config.Config, results: Results) -> Material:
    retraining, retrain_progress = results.retraining()
    curves = results.curves()
    training, train_progress = results.training()
    lines, stale_lines = results.retraining_lines(retraining)
    similarity, stale_matrices = results.similarity()
    pictures, without = results.pictures(settings.report.gallery_images)
    remarks = (*stale_lines, *stale_matrices, *without)
    parts = (train_progress, results.extraction_progress(), retrain_progress, *results.test_progress())
    progress = [part for part in parts if part is not None]
    test_accuracy = None if training is None else training.test_accuracy
    return Material(
        title=settings.desc or settings.outdir.name,
        facts=list(_facts(settings, results, retraining, curves, progress, test_accuracy)),
        methods=results.methods,
        retraining=retraining,
        curves=curves,
        tests=results.tests,
        retraining_lines=lines,
        similarity=similarity,
        sanity=results.sanity(),
        health=results.health(),
        pictures=pictures,
        training=training,
        learned=list(learned.told(settings.outdir)),
        progress=progress,
        warnings=[*(remark for part in progress for remark in part.remarks), *remarks],
        costs=results.costs(),
        provenance=results.provenance(),
        versions=runtime.versions(),
        configuration=yaml.safe_dump(
            settings.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True
        ),
        label_targets=settings.extract_cams is not None and settings.extract_cams.target == "label",
        settings=Settings(settings.report.confidence, settings.report.resamples, settings.seed),
    )


def _facts(
    settings: config.Config,
    results: Results,
    retraining: list[Retraining],
    curves: Curves | None,
    progress: list[Progress],
    test_accuracy: float | None,
) -> Iterator[tuple[str, str]]:
    """What was tested, in a few words each."""
    data = [settings.data.dataset.rpartition(".")[2]]
    if results.class_names:
        data.append(count(len(results.class_names), "class", "classes"))
    if results.fingerprints:
        height, width = results.run.dataset.size
        data.append(f"{width} × {height} pixels")
    yield "Images", ", ".join(data)
    models = (getattr(section, "model", None) for _, section in settings)
    arch = next((model.arch for model in models if model is not None), "")
    accuracy = "" if test_accuracy is None else f", test accuracy {percent(test_accuracy)}"
    yield "Classifier", f"{arch.rpartition('.')[2]}{accuracy}"
    controls = sum(method.control for method in results.methods)
    yield "Methods", f"{len(results.methods) - controls} and {count(controls, 'control')}"
    if retraining:
        removed = listed([percent(fraction) for fraction in retraining[0].fractions if fraction > 0])
        yield "Removed and retrained", f"{removed}; {count(len(retraining[0].runs), 'run')} each"
        cells = next(part for part in progress if part.unit == "cells")
        yield "Networks retrained", f"{cells.done:,} of {cells.wanted:,}"
    if curves is not None:
        steps = len(curves.fractions) - 1
        yield "Removed without retraining", f"{count(curves.images, 'image')}, {count(steps, 'step')} each way"
    if retraining or curves is not None:
        fills = {part.fill for part in retraining} | ({curves.fill} if curves is not None else set())
        yield "Removed pixels become", listed(sorted(fills))
