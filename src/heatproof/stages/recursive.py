"""Maps of a retrained network, for recursive ROAR: what is important once the most important pixels are gone.

The network that was retrained at one removed fraction explains the very images that it was trained on, holes included.
Pixels that are gone stay gone, in the order in which they went; its map orders the rest. So the next fraction removes
what this network uses, not what the first one did (Madsen et al., arXiv:2110.08412).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from heatproof import artefacts, removal, store
from heatproof.datasets import Split
from heatproof.methods.explainer import Explainer
from heatproof.models import LoadedModel
from heatproof.stages.extract import ROWS_PER_BLOCK, Source, ranked, regions_of
from heatproof.stages.plan import Artefact
from heatproof.stages.run import Run

RESULTS_VERSION = 1
KEPT = ("target", "dtype", "ties", "seed")


@dataclass(frozen=True)
class Explanation:
    """A retrained network, what is removed from the images that it sees, and the method that explains it.

    Args:
        run: the configuration at work.
        loaded: the network, on the run's device.
        method: the attribution method.
        fill: what stands in the place of removed pixels.
        fraction: removed, the most important pixels first.
        batch_size: images that are explained at a time.
    """

    run: Run
    loaded: LoadedModel
    method: Explainer
    fill: removal.Fill
    fraction: float
    batch_size: int

    def write(self, split: Split, before: store.MapReader, file: Artefact[Source]) -> None:
        """Makes the file of a split's maps; what is there of it is kept.

        Args:
            split: the images.
            before: the maps by which pixels were removed so far; what they are sorted and stored by holds here too.
            file: the new file.
        """
        kept = {name: before.origin[name] for name in KEPT}
        writer = store.MapWriter(
            file.path,
            rows=len(split),
            size=split.size,
            classes=before.classes,
            origin=file.origin,
            method=self.method.name,
            split=split.name,
            dtype=kept["dtype"],
            rows_per_block=min(store.rows_per_shard(split.size), ROWS_PER_BLOCK),
        )
        provided = {
            "seed": kept["seed"],
            "regions": regions_of(split),
            "normalization": self.loaded.normalization,
        }
        explain = self.method.bind(self.loaded.module, provided)
        self.loaded.module.eval()
        for block in writer.missing():
            starts = range(block.start, block.stop, self.batch_size)
            parts = [
                self._part(split, before, np.arange(start, min(start + self.batch_size, block.stop)), explain)
                for start in starts
            ]
            writer.write(block, **{name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
        writer.finish()

    def _part(self, split: Split, before: store.MapReader, rows: NDArray[np.int64], explain: Any) -> dict[str, Any]:
        device, invalid = self.run.device, before.invalid[rows]
        old = np.where(invalid[:, None, None], 0, before.ranks(rows).astype(np.int64))
        indices = torch.from_numpy(rows)
        mask = removal.removed(removal.rank_tensor(old, device), self.fraction, "most")
        pixels = split.pixels(rows).to(device).float().div_(255.0)
        images = self.loaded.normalization(self.fill(pixels, mask, indices.to(device)))
        with torch.inference_mode():
            logits = self.loaded.module(images).float().cpu().numpy()
        prediction, label = logits.argmax(1).astype(np.int64), split.labels[rows]
        target = prediction if before.origin["target"] == "predicted" else label
        found = explain(images, torch.from_numpy(target).to(device), indices)
        maps = found.maps.cpu().numpy()
        invalid = invalid | found.invalid.cpu().numpy()
        new = ranked(rows, maps, invalid, before.origin["ties"], before.origin["seed"])
        return {
            "maps": maps,
            "ranks": continued_ranks(old, new, removal.count(self.fraction, old[0].size)),
            "invalid": invalid,
            "index": rows,
            "label": label,
            "target": target,
            "prediction": prediction,
            "logits": logits,
        }


def kept_of(path: Path) -> dict[str, Any]:
    """How the maps of a file are sorted and stored, which holds for those that are made from them; unknown before it is there."""
    state = store.read_state(path, store.FORMAT)
    origin = (state.origin if state is not None else None) or {}
    return {name: origin.get(name, artefacts.Unknown(str(path))) for name in KEPT}


def continued_ranks(before: NDArray[np.integer], new: NDArray[np.integer], count: int) -> NDArray[np.int64]:
    """The first `count` pixels of one order as they are, and behind them the rest in the order of another.

    Args:
        before: (N, H, W) ranks, 0 = most important.
        new: (N, H, W) others.
        count: pixels that are gone.

    Returns:
        (N, H, W), a permutation of 0, ..., H*W - 1 for each image.

    >>> continued_ranks(np.array([[[0, 1, 2, 3]]]), np.array([[[0, 3, 2, 1]]]), 1).tolist()
    [[[0, 3, 2, 1]]]
    >>> continued_ranks(np.array([[[0, 1, 2, 3]]]), np.array([[[3, 2, 1, 0]]]), 2).tolist()
    [[[0, 1, 3, 2]]]
    """
    flat = before.reshape(len(before), -1).astype(np.int64)
    pixels = flat.shape[1]
    keys = np.where(flat < count, flat - pixels, new.reshape(flat.shape).astype(np.int64))
    return keys.argsort(axis=1).argsort(axis=1).reshape(before.shape)
