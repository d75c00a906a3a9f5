"""Images as data URIs, small enough for a page to hold hundreds of them."""

import base64
import colorsys
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

LARGEST = 160
"""Largest number of pixels of the longer side; larger images are scaled down."""

SMALLEST = 6
"""Smallest number of pixels of the shorter side of an image without a dimension for channels."""

LOSSLESS = 48
"""Images up to this size keep every pixel (PNG) and are shown without smoothing; larger ones are compressed (WebP)."""


NOT_COUNTED = "not counted"
"""Name of pixels that are ignored."""


@dataclass(frozen=True)
class Picture:
    """An image inside the page."""

    source: str
    """A ``data:`` URI."""
    width: int
    height: int
    name: str = "image"
    legend: tuple[tuple[int, str, str], ...] = ()
    """Of a class per pixel: the classes in it, each with its color (``#rrggbb``) and its name, if classes have names."""

    @property
    def sharp(self) -> bool:
        """Whether to show single pixels, without smoothing."""
        return max(self.width, self.height) <= LOSSLESS


def is_image(value: Any) -> bool:
    """Whether `value` is a PIL image, or an array (H, W), (C, H, W) or (H, W, C) with 1, 3 or 4 channels."""
    if hasattr(value, "convert") and hasattr(value, "mode"):
        return True
    if not isinstance(value, np.ndarray):
        return False
    if value.ndim == 2:  # not the ends of edges, coordinates or a short series
        return min(value.shape) >= SMALLEST
    return value.ndim == 3 and (value.shape[0] in (1, 3, 4) or value.shape[2] in (1, 3, 4))


def picture(value: Any) -> Picture:
    """Encode `value` as an image in a page.

    Bytes, and numbers in 0 … 1, are shown unchanged; other numbers (standardized images) are stretched to the range from
    black to white, image by image.
    """
    from PIL import Image

    image = Image.fromarray(_bytes(value)) if isinstance(value, np.ndarray) else value
    image = image.convert("RGBA" if image.mode in ("RGBA", "LA", "P") else "L" if image.mode in ("L", "1") else "RGB")
    if max(image.size) > LARGEST:
        image.thumbnail((LARGEST, LARGEST))
    small = max(image.size) <= LOSSLESS
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True) if small else image.save(buffer, "WEBP", quality=80)
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return Picture(f"data:image/{'png' if small else 'webp'};base64,{encoded}", *image.size)


def mask_picture(array: Any, ignored: int | None, names: Sequence[str] | None = None) -> Picture:
    """Encode a class per pixel (H, W), each class in the same color in all masks: 0 black, 1 white, `ignored` gray.

    `names` of the classes are for its legend.
    """
    step = -(-max(array.shape) // LARGEST)  # scaled down without classes in between
    array = array[::step, ::step]
    colors, legend = np.zeros((*array.shape, 3), np.uint8), []
    for label in np.unique(array):
        gray = {0: 0, 1: 255, ignored: 128}.get(int(label))
        hue = 0.618 * int(label) % 1  # multiples of the golden ratio stay apart
        color = colorsys.hsv_to_rgb(hue, 0.65, 0.95) if gray is None else (gray / 255,) * 3
        colors[array == label] = rgb = np.round(255 * np.array(color)).astype(np.uint8)
        named = 0 <= label < len(names or ())
        if names and (named or label == ignored):
            legend.append((int(label), f"#{bytes(rgb).hex()}", str(names[label]) if named else NOT_COUNTED))
    return replace(picture(colors), legend=tuple(legend))


def _bytes(array: Any) -> Any:
    """(H, W) or (H, W, C) in 0 … 255."""
    # The channels are either first or last, and the shorter of the two.
    if array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[0] <= array.shape[2]:
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    values = np.nan_to_num(array.astype(np.float64))
    low, high = values.min(), values.max()
    if low < 0 or high > 1:
        values = (values - low) / max(high - low, 1e-12)
    return np.ascontiguousarray(np.round(values * 255).astype(np.uint8))
