"""What a box holds, enlarged to the size of the image: all else is removed, and the classifier looks closer."""

import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn import functional

from heatproof import checks


def enlarged(images: Tensor, boxes: ArrayLike) -> Tensor:
    """Each image's box, resized to the size of the image (bicubic); nothing but zeros for an empty box.

    Args:
        images: (N, C, H, W), normalised: zero is the mean colour.
        boxes: (N, 4), (x0, y0, x1, y1), half-open, within the image.

    Returns:
        (N, C, H, W).

    Reference:
        Dabkowski and Gal, arXiv:1705.07857; OpenCV's INTER_CUBIC, to 1e-5.

    >>> enlarged(torch.eye(2)[None, None], [[1, 0, 2, 1]]).tolist()
    [[[[0.0, 0.0], [0.0, 0.0]]]]
    """
    corners = torch.as_tensor(boxes, dtype=torch.int64)
    count, _, height, width = checks.shapes("N C H W", images=images).values()
    checks.shapes(f"{count} 4", boxes=corners)
    result = torch.zeros_like(images)
    for row, (x0, y0, x1, y1) in enumerate(corners.tolist()):
        if x1 > x0 and y1 > y0:
            crop = images[row : row + 1, :, y0:y1, x0:x1]
            result[row] = functional.interpolate(crop, (height, width), mode="bicubic", align_corners=False)[0]
    return result
