"""Typed settings of a pretraining, their presets, and what `auto` becomes."""

from dagman.settings.presets import list_presets, load_settings
from dagman.settings.resolution import resolve_settings
from dagman.settings.tree import Settings

__all__ = ["Settings", "list_presets", "load_settings", "resolve_settings"]
