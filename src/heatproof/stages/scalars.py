"""What a training tells after each epoch: history.csv and TensorBoard."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.tensorboard import SummaryWriter
from torchvision.transforms.functional import pil_to_tensor

from heatproof import artefacts


class Scalars:
    """Writes lines and pictures of a training into a folder; used as a context.

    Args:
        folder: gets history.csv, whole after each epoch, and tensorboard/.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.writer: SummaryWriter | None = None

    def __enter__(self) -> "Scalars":
        return self

    def __exit__(self, *_: object) -> None:
        if self.writer is not None:
            self.writer.close()

    def add(self, columns: Sequence[str], history: Sequence[Sequence[Any]]) -> None:
        """Writes all epochs' lines, the number of the epoch first; the last one goes to TensorBoard.

        What a killed run wrote beyond its checkpoint is superseded.
        """
        artefacts.write_csv(self.folder / "history.csv", columns, history)
        epoch, *values = history[-1]
        for name, value in zip(columns[1:], values, strict=True):
            self._opened(epoch).add_scalar(name, value, epoch)

    def show(self, name: str, picture: Image.Image, epoch: int) -> None:
        """Gives TensorBoard a picture of an epoch."""
        self._opened(epoch).add_image(name, pil_to_tensor(picture), epoch)

    def _opened(self, epoch: int) -> SummaryWriter:
        if self.writer is None:
            self.writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=epoch)
        return self.writer
