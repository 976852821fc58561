"""A self-contained HTML file that shows scans in three planes with NiiVue, and loads nothing from the network."""

from dagman.reports.viewer.layers import AttentionLayer, LabelLayer, coarsen_affine, place_attention
from dagman.reports.viewer.page import Exhibit, render_viewer, render_viewers

__all__ = ["AttentionLayer", "Exhibit", "LabelLayer", "coarsen_affine", "place_attention", "render_viewer", "render_viewers"]
