"""Reads archives of scans (zip, tar): they are unpacked while the process runs, and named as if they were folders."""

from dagman.scans.archives.places import enter_archive, find_fault, is_archive, reach_place, remove_unpacked, show_place, stat_place

__all__ = ["enter_archive", "find_fault", "is_archive", "reach_place", "remove_unpacked", "show_place", "stat_place"]
