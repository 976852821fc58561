"""The page of a store: how many scans of how many patients, of which sizes, and how much of a body they show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dagman.records.counts import count_noun
from dagman.reports.page import DataTable, Listing, Section, render_page

_COLUMNS = ("", "least", "lower quartile", "median", "upper quartile", "greatest")


def list_spreads(counts: Mapping[str, Any]) -> list[list[Any]]:
    """A row for each number: its name, the least, the quartiles, the greatest."""
    spreads = {"scans per patient": counts["scans_per_patient"], "MB per scan": counts["megabytes_per_scan"]}
    spreads |= {f"spacing of the sources along {axis} (mm)": spread for axis, spread in counts["source_spacing_mm"].items()}
    spreads |= {f"voxels along {axis}": spread for axis, spread in counts["voxels_xyz"].items()}
    spreads |= {f"body's extent along {axis} (mm)": spread for axis, spread in counts["body_extent_mm"].items()}
    spreads |= {f"{name.replace('_', ' ')} of a CT's voxels": spread for name, spread in counts["body_shares"].items()}
    return [[name, *spread.values()] for name, spread in spreads.items() if spread]


def list_unrecorded(counts: Mapping[str, Any]) -> list[str]:
    """What is not known of scans that an earlier release prepared."""
    count = counts["before_spacings"]
    return [f"spacing and kernel of {count_noun(count, 'scan')} from an earlier dagman"] if count else []


def state_kernels(counts: Mapping[str, Any]) -> str:
    """The kernels with their numbers of scans; empty where none is known."""
    return ", ".join(f"{name} ({number})" for name, number in counts["kernels"].items())


def state_counts(counts: Mapping[str, Any]) -> str:
    """Scans, patients, modalities and bytes in one sentence."""
    modalities = ", ".join(f"{number} {name}" for name, number in counts["modalities"].items())
    scans, patients = count_noun(counts["scans"], "scan"), count_noun(counts["patients"], "patient")
    assumed = f" ({counts['patients_assumed']} assumed)" if counts["patients_assumed"] else ""
    return f"{scans} of {patients}{assumed}: {modalities}; {counts['bytes'] / 1e6:.1f} MB at {counts['spacing_mm']:g} mm."


def render_store(counts: Mapping[str, Any]) -> str:
    """The page as HTML, of what `count_store` gives."""
    sections = [
        Section("Sizes and body coverage", [DataTable(_COLUMNS, list_spreads(counts))]),
        Section("Reconstruction kernels", [DataTable(("kernel", "scans"), list(counts["kernels"].items()))]),
        Section("Not recorded", [Listing([*list_unrecorded(counts), "ages and names of patients, on purpose"])]),
    ]
    return render_page("Contents of a store", state_counts(counts), sections, footer="Made by `dagman store stats`.")
