"""Deterministic token alignment for Mixture-of-Experts layers: a stable counting sort of slots by expert."""

from moe_align.api import align_blocks, align_offsets, align_rows, schedule_blocks
from moe_align.dispatch import use_pdl
from moe_align.layouts import Blocks, Offsets, Rows

__all__ = ["Blocks", "Offsets", "Rows", "align_blocks", "align_offsets", "align_rows", "schedule_blocks", "use_pdl"]
__version__ = "0.1.0"
