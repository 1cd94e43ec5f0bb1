"""Deterministic token alignment for Mixture-of-Experts layers: a stable counting sort of slots by expert."""

from moe_align.api import align_rows, schedule_blocks
from moe_align.layouts import Rows

__all__ = ["Rows", "align_rows", "schedule_blocks"]
__version__ = "0.1.0"
