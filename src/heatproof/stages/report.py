"""report: write one self-contained page with all results.

Reads what the other stages left; writes report/index.html, the figures (report/figures/*.svg, *.png) and their numbers
(report/figures/*.csv), and report/index.json with what the page was made from. Partial results are fine: the page says
what is missing. Nothing is done where nothing has changed.
"""

import hashlib
import logging
from collections.abc import Iterator
from typing import Any

import yaml

from heatproof import artefacts, config, report, runtime
from heatproof.report import Curves, Material, Retraining
from heatproof.report.wording import count, listed, percent
from heatproof.stages import learned
from heatproof.stages.plan import Artefact
from heatproof.stages.results import Results
from heatproof.stages.run import Run

logger = logging.getLogger(__name__)


def plan(run: Run) -> list[Artefact[None]]:
    """The page, of what is there now."""
    return [_page(Results.of(run))]


def _page(results: Results) -> Artefact[None]:
    return Artefact(results.settings.outdir / "report" / "index.html", _origin(results), None, "made")


def run(run: Run) -> None:
    """Makes the page unless it is there and nothing that it shows has changed."""
    results = Results.of(run)
    page = _page(results)
    if page.is_complete():
        return
    folder = page.path.parent
    material = _material(run.config, results)
    made = report.compose(material)
    artefacts.remove_leftovers(folder / "figures")
    for name, content in made.files.items():
        with artefacts.whole_file(folder / "figures" / name) as temporary:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    artefacts.write_text(folder / "index.html", made.html)
    # Pictures that could not be shown may be there the next time, so such a page is never taken for done.
    is_whole = not (material.methods and run.config.report.gallery_images and results.maps and not material.pictures)
    if is_whole:
        page.write(page.path, *(folder / "figures" / name for name in made.files))
    else:
        page.record.unlink(missing_ok=True)
    logger.info("%s: written; open it in a browser", folder / "index.html")


def _origin(results: Results) -> dict[str, Any]:
    """What decides about the page: settings, how every artefact stands, our code and the libraries' versions."""
    sources = artefacts.canonical(report.source_texts())
    settings = results.settings.model_dump(mode="json", exclude={"outdir"})
    return {
        # A run that was moved shows the same.
        "configuration": _digest(artefacts.canonical(settings).replace(str(results.settings.outdir), ".")),
        "results": _digest(results.identity()),
        "page": [report.RESULTS_VERSION, hashlib.sha256(sources.encode()).hexdigest()],
        "versions": runtime.versions(),
    }


def _digest(value: Any) -> str:
    return hashlib.sha256(artefacts.canonical(value).encode()).hexdigest()


def _material(settings: config.Config, results: Results) -> Material:
    retraining, curves, training = results.retraining(), results.curves(), results.training()
    pictures, remarks = results.pictures(settings.report.gallery_images)
    progress = results.progress()
    test_accuracy = None if training is None else training.test_accuracy
    return Material(
        title=settings.desc or settings.outdir.name,
        facts=list(_facts(settings, results, retraining, curves, test_accuracy)),
        methods=results.methods,
        retraining=retraining,
        curves=curves,
        tests=results.tests,
        retraining_lines=results.retraining_lines(),
        similarity=results.similarity(),
        sanity=results.sanity(),
        health=results.health(),
        pictures=pictures,
        training=training,
        learned=list(learned.told(results.stages, settings.outdir)),
        progress=progress,
        warnings=[*(remark for part in progress for remark in part.remarks), *remarks],
        costs=results.costs(),
        provenance=results.provenance(),
        versions=runtime.versions(),
        configuration=yaml.safe_dump(
            settings.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True
        ),
        label_targets=settings.extract_cams is not None and settings.extract_cams.target == "label",
        settings=results.run.intervals,
    )


def _facts(
    settings: config.Config,
    results: Results,
    retraining: list[Retraining],
    curves: Curves | None,
    test_accuracy: float | None,
) -> Iterator[tuple[str, str]]:
    """What was tested, in a few words each."""
    data = [settings.data.dataset.rpartition(".")[2]]
    if results.class_names:
        data.append(count(len(results.class_names), "class", "classes"))
    if results.run.has_images:
        height, width = results.run.dataset.size
        data.append(f"{width} × {height} pixels")
    yield "Images", ", ".join(data)
    models = (getattr(section, "model", None) for _, section in settings.sections())
    arch = next((model.arch for model in models if model is not None), "")
    accuracy = "" if test_accuracy is None else f", test accuracy {percent(test_accuracy)}"
    yield "Classifier", f"{arch.rpartition('.')[2]}{accuracy}"
    controls = sum(method.control for method in results.methods)
    yield "Methods", f"{len(results.methods) - controls} and {count(controls, 'control')}"
    if retraining:
        removed = listed([percent(fraction) for fraction in retraining[0].fractions if fraction > 0])
        yield "Removed and retrained", f"{removed}; {count(len(retraining[0].runs), 'run')} each"
        done, wanted = results.networks()
        yield "Networks retrained", f"{done:,} of {wanted:,}"
    if curves is not None:
        steps = len(curves.fractions) - 1
        yield "Removed without retraining", f"{count(curves.images, 'image')}, {count(steps, 'step')} each way"
    if retraining or curves is not None:
        fills = {part.fill for part in retraining} | ({curves.fill} if curves is not None else set())
        yield "Removed pixels become", listed(sorted(fills))
