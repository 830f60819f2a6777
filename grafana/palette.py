"""The colours: those of Okabe and Ito, which people tell apart whatever colours they see.

A colour never says alone what a text beside it does not.
"""

from __future__ import annotations

from typing import Final

__all__ = ["BLUE", "GREEN", "GREY", "OF", "ORANGE", "PURPLE", "SAFE", "SKY", "VERMILION", "YELLOW"]

ORANGE: Final = "#E69F00"
SKY: Final = "#56B4E9"
GREEN: Final = "#009E73"
YELLOW: Final = "#F0E442"
BLUE: Final = "#0072B2"
VERMILION: Final = "#D55E00"
PURPLE: Final = "#CC79A7"
GREY: Final = "#8E8E8E"
SAFE: Final = frozenset({ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE, GREY})

OF: Final = {
    "completed": GREEN,
    "running": SKY,
    "pending": GREY,
    "interrupted": ORANGE,
    "paused": BLUE,
    "failed": VERMILION,
    "cancelled": GREY,
    "lost": PURPLE,
    "stalled": YELLOW,
}
"""Of outcomes and states, the same on every page."""
