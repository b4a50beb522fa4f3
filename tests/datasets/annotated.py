"""Small annotated pictures in the forms that data sets come in."""

import numpy as np
from PIL import Image
from scipy.ndimage import binary_dilation

# resize, crop, squash: shrunk and cut, enlarged and cut, squashed, squashed and cut, padded, cut alone.
FRAMINGS = [(64, 48, False), (160, 130, False), (70, None, True), (64, 48, True), (40, 61, False), (None, 50, False)]


def rectangle(path, size=(120, 90), box=(30, 20, 75, 60)):
    """A black picture with a white box, half-open, in a PNG file; returns the box's pixels."""
    mask = np.zeros(size[::-1], dtype=bool)
    x0, y0, x1, y1 = box
    mask[y0:y1, x0:x1] = True
    path.parent.mkdir(parents=True, exist_ok=True)
    # A lossless file under the name that the data set gives it: Pillow reads what is inside.
    Image.fromarray(np.repeat(mask[..., None], 3, axis=2).astype(np.uint8) * 255).save(path, format="PNG")
    return mask


def lies_on(region, white):
    """Whether a region is the white pixels, up to one pixel along its outline."""
    grown = np.ones((3, 3), dtype=bool)
    return not (region & ~binary_dilation(white, grown)).any() and not (white & ~binary_dilation(region, grown)).any()


def white(split, index=0):
    return (split.pixels([index])[0].float().mean(dim=0) > 127.5).numpy()


def voc_xml(width, height, *objects):
    """The text of an XML file with (name, xmin, ymin, xmax, ymax)."""
    body = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        for name, x0, y0, x1, y1 in objects
    )
    return f"<annotation><size><width>{width}</width><height>{height}</height></size>{body}</annotation>"
