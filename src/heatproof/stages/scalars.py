"""What a training tells after each epoch: history.csv and TensorBoard."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from heatproof import artefacts

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Scalars:
    """Writes lines and pictures of a training into a folder; used as a context.

    Args:
        folder: gets history.csv, whole after each epoch, and tensorboard/.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.writer: SummaryWriter | None = None

    def __enter__(self) -> "Scalars":
        # Seconds, which a stage that is complete need not wait; nor may they lie between an epoch and its checkpoint.
        from torch.utils.tensorboard import SummaryWriter

        self._kind = SummaryWriter
        return self

    def __exit__(self, *_: object) -> None:
        if self.writer is not None:
            self.writer.close()

    def add(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Writes all epochs' lines; the values of the last one, by name and with its number as "epoch", go to TensorBoard.

        What a killed run wrote beyond its checkpoint is superseded.
        """
        artefacts.write_csv(self.folder / "history.csv", list(history[-1]), [list(line.values()) for line in history])
        for name, value in history[-1].items():
            if name != "epoch":
                self._opened(history[-1]["epoch"]).add_scalar(name, value, history[-1]["epoch"])

    def show(self, name: str, picture: Image.Image, epoch: int) -> None:
        """Gives TensorBoard a picture of an epoch."""
        shown = np.asarray(picture).reshape(picture.height, picture.width, -1)
        self._opened(epoch).add_image(name, shown, epoch, dataformats="HWC")

    def tell(self, name: str, text: str, epoch: int) -> None:
        """Gives TensorBoard a text in Markdown."""
        self._opened(epoch).add_text(name, text, epoch)

    def _opened(self, epoch: int) -> "SummaryWriter":
        if self.writer is None:
            self.writer = self._kind(str(self.folder / "tensorboard"), purge_step=epoch)
        return self.writer


def as_pictures(pixels: Tensor) -> NDArray[np.uint8]:
    """Pictures (N, H, W, 3) of pixels (N, C, H, W) in [0, 1]; grey ones have the same three times."""
    shown: NDArray[np.uint8] = (
        (255 * pixels).round().to(torch.uint8).expand(-1, 3, -1, -1).permute(0, 2, 3, 1).cpu().numpy()
    )
    return shown
