"""Typed settings of a pretraining run, their presets, and how `auto` is resolved."""

from dagman.settings.presets import list_presets, load_settings
from dagman.settings.resolution import resolve_settings
from dagman.settings.tree import Settings

__all__ = ["Settings", "list_presets", "load_settings", "resolve_settings"]
