"""Images, labels and regions, addressed by index."""

from heatproof.datasets.dataset import Dataset, Split, training_statistics
from heatproof.datasets.opening import open_dataset

__all__ = ["Dataset", "Split", "open_dataset", "training_statistics"]
