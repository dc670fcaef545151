"""Which observations are images, and how they lie in their arrays."""

from __future__ import annotations

from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.spaces import Box

__all__ = ["SMALLEST_IMAGE", "Image", "image_of"]

SMALLEST_IMAGE = 36  # what `fastac.networks.NatureConvolutions` leaves one pixel of


class Image(NamedTuple):
    """How an image observation lies in its array."""

    channels: int
    height: int
    width: int
    channels_last: bool


def image_of(space: gymnasium.Space[Any]) -> Image | None:
    """Returns the layout of an image space, a Box of uint8, 0 to 255, of 2 or 3 dimensions; None for any other space.

    Of three dimensions the channels (colours, stacked frames) are the shorter one of the first and the last.

    Example:
        >>> image_of(Box(0, 255, (84, 84), np.uint8))
        Image(channels=1, height=84, width=84, channels_last=False)
        >>> image_of(Box(0, 255, (210, 160, 3), np.uint8))
        Image(channels=3, height=210, width=160, channels_last=True)
        >>> image_of(Box(0, 255, (4, 84, 84), np.uint8))
        Image(channels=4, height=84, width=84, channels_last=False)
        >>> image_of(Box(-1, 1, (3,)))
    """
    if not isinstance(space, Box) or space.dtype != np.uint8 or len(space.shape) not in (2, 3):
        return None
    if len(space.shape) == 2:
        return Image(1, *space.shape, channels_last=False)
    first, middle, last = space.shape
    return Image(last, first, middle, True) if last <= first else Image(first, middle, last, False)
