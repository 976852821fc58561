"""Colours of structures, the same in figures, viewers and DICOM: eight based on Okabe and Ito's palette, then distant hues."""

from __future__ import annotations

import colorsys

CYCLE = ("#0072b2", "#d55e00", "#009e73", "#aa4499", "#56b4e9", "#e69f00", "#b2182b", "#5b6b7a")
"""Blue, orange, green, purple, sky blue, yellow, red, grey: colour-blind readers can distinguish them."""
_GOLDEN = 0.618033988749895
"""Step between two hues, as a share of the colour circle: no hue repeats, and consecutive ones are far apart."""


def color_structures(count: int) -> list[str]:
    """Return colours as #rrggbb for a number of structures; the first ones are those of `CYCLE`."""
    more = []
    for number in range(max(count - len(CYCLE), 0)):
        red, green, blue = colorsys.hls_to_rgb(number * _GOLDEN % 1.0, (0.45, 0.6, 0.7)[number % 3], 0.65)
        more.append(f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}")
    return [*CYCLE, *more][:count]


def split_color(color: str) -> tuple[int, int, int]:
    """Return red, green and blue (0 to 255) of #rrggbb."""
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)
