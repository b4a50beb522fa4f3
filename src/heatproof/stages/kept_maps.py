"""Files of maps as other stages read them: is each what the configuration asks for, and what is in it?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from heatproof import artefacts, config, records, store
from heatproof.datasets import Split
from heatproof.errors import MapError, MissingInputError
from heatproof.stages.extract import Extraction, Source, explainer, file_of
from heatproof.stages.plan import Artefact
from heatproof.stages.run import SPLITS, Run


def maps_of(file: Artefact[Source], split: Split) -> store.MapReader:
    """A method's maps of a whole split, in its order.

    Raises:
        MissingInputError: they are not there.
        MapError: they are not complete, of other images, or not those that the configuration asks for.
    """
    path = file.path
    if not path.is_file():
        raise MissingInputError(f"{path}: no such file of maps; run extract-attribution-maps first")
    reader = store.MapReader(path)
    reader.require_complete()
    rows = len(split)
    if reader.origin.get("data") != split.fingerprint:
        raise MapError(f"{path}: maps of other data than the configuration's; run extract-attribution-maps")
    if reader.rows != rows or not np.array_equal(reader.index, np.arange(rows)):
        raise MapError(f"{path}: {reader.rows} rows that are not the split's {rows} images in order")
    if not (found := file.status()).is_complete:
        raise MapError(f"{path}: {found.state} ({found.why}); run extract-attribution-maps")
    return reader


TO_BE_MADE_ANEW = "to be made anew"


def content_of(file: Artefact[Source]) -> Any:
    """What is in a file of maps, for the origin of what is made from it.

    Unknown where it is not there, or damaged: made again, it holds the same. A stale one will hold something else.
    """
    found = file.status()
    if found.state == "stale":
        return TO_BE_MADE_ANEW
    return store.content_id(file.path) if found.is_complete else artefacts.Unknown(str(file.path))


def kept_files(run: Run, methods: Sequence[config.AttributionMethod]) -> dict[tuple[str, str], Artefact[Source]]:
    """The files of maps of extract_cams, by method and split, for stages that read them and load no classifier.

    Of methods that the section does not have, all that is known is whose images they are to explain.
    """
    view = run.view(is_reading=run.is_reading)
    section = run.config.extract_cams
    known: dict[tuple[str, str], Artefact[Source]] = {}
    if section is not None:
        extraction = Extraction.of(view, section)
        planned = [file for split in SPLITS for file in extraction.plan(split, extraction.files(split))]
        known = {(file.job.method.name, file.job.split): file for file in planned}
    for method in methods:
        for split in SPLITS:
            if (method.name, split) not in known:
                source = Source(explainer(method), split)
                known[method.name, split] = Foreign(
                    file_of(run, method.name, split), {"data": run.fingerprint(split)}, source
                )
    return known


@dataclass(frozen=True, eq=False)
class Foreign(Artefact[Source]):
    """Maps that no section of the configuration says how to make: only what `origin` names is compared."""

    def status(self) -> records.Status:
        """How it stands."""
        state = store.read_state(self.path)
        if state is None or state.origin is None:
            return super().status()
        wanted = {**state.origin, **self.origin}
        return Artefact(self.path, wanted, self.job).status()
