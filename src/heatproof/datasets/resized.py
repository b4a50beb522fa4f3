"""Pictures at another size than that of their files, for classifiers that were made for it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from heatproof import checks
from heatproof.datasets import pictures
from heatproof.datasets.dataset import Boxes, Indices, Part, Samples, Source
from heatproof.datasets.pictures import Framing


def resized(source: Source, size: int | None) -> Source:
    """The same pictures as squares of `size` pixels, scaled as Pillow does (bilinear, antialiased); None: as they are.

    Raises:
        InputError: the size is no number of pixels.

    >>> from heatproof.datasets.counting import Counting, CountingSource
    >>> resized(CountingSource(Counting(), seed=0), 224).size
    (224, 224)
    """
    if size is None:
        return source
    checks.integer("size", size, 1, 2**16)
    return ResizedSource(source, Framing(size, squash=True))


@dataclass(frozen=True)
class ResizedSource:
    """Another source's pictures, each squashed into the same frame."""

    source: Source
    framing: Framing

    @property
    def class_names(self) -> tuple[str, ...]:
        """The source's."""
        return self.source.class_names

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the frame."""
        return self.framing.frame(*self.source.size[::-1])

    @property
    def channels(self) -> int:
        """The source's."""
        return self.source.channels

    @property
    def fingerprint(self) -> str:
        """Names the source's pictures and the frame."""
        return hashlib.sha256(f"{self.source.fingerprint}\n{self.framing!r}".encode()).hexdigest()

    @property
    def parts(self) -> Sequence[Part]:
        """The source's."""
        return self.source.parts

    def open(self, part: Part) -> "ResizedSamples":
        """The source's part."""
        return ResizedSamples(self.source.open(part), self.source.size, self.framing)


class ResizedSamples:
    """Another part's pictures, scaled when they are asked for.

    Args:
        samples: the part.
        from_size: height and width of its pictures.
        framing: their frame.
    """

    def __init__(self, samples: Samples, from_size: tuple[int, int], framing: Framing):
        self.samples, self.from_size, self.framing = samples, from_size, framing
        self.labels: Indices = samples.labels
        self.fingerprint = f"{samples.fingerprint}/{framing!r}"

    def pixels(self, indices: Indices) -> Tensor:
        """Pictures (B, C, H, W), uint8."""
        return scaled(self.samples.pixels(indices), self.framing)

    def regions(self, indices: Indices) -> NDArray[np.bool_] | None:
        """The objects' pixels (B, H, W): each takes the nearest of the part's."""
        return self._masks(self.samples.regions(indices))

    def boxes(self, indices: Indices) -> list[Boxes] | None:
        """The part's boxes in the frame."""
        found = self.samples.boxes(indices)
        height, width = self.from_size
        return None if found is None else [self.framing.boxes(boxes, width, height) for boxes in found]

    def ignored(self, indices: Indices) -> NDArray[np.bool_] | None:
        """Pixels (B, H, W) that count neither way: each takes the nearest of the part's."""
        return self._masks(self.samples.ignored(indices))

    def _masks(self, masks: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
        if masks is None:
            return None
        framed = np.zeros((len(masks), *self.framing.frame(*self.from_size[::-1])), dtype=np.bool_)
        for place, mask in enumerate(masks):
            framed[place] = self.framing.mask(mask.astype(np.uint8)) > 0
        return framed


def scaled(pixels: Tensor, framing: Framing) -> Tensor:
    """Pictures (B, C, h, w), uint8, of 1 or 3 channels, in their frame: (B, C, H, W)."""
    height, width = framing.frame(pixels.shape[3], pixels.shape[2])
    values = pixels.permute(0, 2, 3, 1).numpy()

    def one(row: int) -> Tensor:
        picture = framing(Image.fromarray(values[row, :, :, 0] if values.shape[3] == 1 else values[row]))
        return torch.from_numpy(np.array(picture).reshape(height, width, -1)).permute(2, 0, 1)

    framed = torch.empty((*pixels.shape[:2], height, width), dtype=torch.uint8)
    for row, picture in enumerate(pictures.each(one, range(len(pixels)))):
        framed[row] = picture
    return framed
