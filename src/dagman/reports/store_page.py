"""The report of `dagman store stats`: numbers of scans and patients, sizes, and body coverage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dagman.records.counts import count_noun
from dagman.reports.page import DataTable, Listing, Section, render_page

_COLUMNS = ("", "minimum", "lower quartile", "median", "upper quartile", "maximum")


def list_spreads(counts: Mapping[str, Any]) -> list[list[str]]:
    """Tabulate each quantity with its unit, minimum, quartiles and maximum; the decimals are equal within a row."""
    rows = [
        _write_spread("scans per patient", counts["scans_per_patient"], 1),
        _write_spread("size of a scan (MB)", counts["megabytes_per_scan"], 2),
    ]
    rows += [_write_spread(f"source spacing along {axis} (mm)", spread, 2) for axis, spread in counts["source_spacing_mm"].items()]
    rows += [_write_spread(f"voxels along {axis}", spread, 0) for axis, spread in counts["voxels_xyz"].items()]
    rows += [_write_spread(f"body extent along {axis} (mm)", spread, 0) for axis, spread in counts["body_extent_mm"].items()]
    for name, spread in counts["body_shares"].items():
        shares = {key: 100 * value for key, value in spread.items()}
        rows.append(_write_spread(f"{name.removesuffix('_share').replace('_', ' ')} (% of a CT's voxels)", shares, 1))
    return [row for row in rows if row[1:]]


def _write_spread(name: str, spread: Mapping[str, float], decimals: int) -> list[str]:
    # If all numbers are whole, decimals carry no information.
    whole = all(float(value).is_integer() for value in spread.values())
    return [name, *(f"{value:.{0 if whole else decimals}f}" for value in spread.values())]


def list_unrecorded(counts: Mapping[str, Any]) -> list[str]:
    """List what is unknown about scans that were prepared by an earlier release."""
    count = counts["before_spacings"]
    return [f"spacing and kernel of {count_noun(count, 'scan')} from an earlier dagman"] if count else []


def state_kernels(counts: Mapping[str, Any]) -> str:
    """List the reconstruction kernels with their numbers of scans; empty if none is known."""
    return ", ".join(f"{name} ({number})" for name, number in counts["kernels"].items())


def state_counts(counts: Mapping[str, Any]) -> str:
    """State the numbers of scans and patients, the modalities and the size on disk in one sentence."""
    modalities = ", ".join(f"{number} {name}" for name, number in counts["modalities"].items())
    scans, patients = count_noun(counts["scans"], "scan"), count_noun(counts["patients"], "patient")
    assumed = f" ({counts['patients_assumed']} assumed)" if counts["patients_assumed"] else ""
    return f"{scans} of {patients}{assumed}: {modalities}; {counts['bytes'] / 1e6:.1f} MB at {counts['spacing_mm']:g} mm."


def render_store(counts: Mapping[str, Any]) -> str:
    """Render the report as HTML; `counts` as returned by `count_store`."""
    sections = [
        Section("Sizes and body coverage", [DataTable(_COLUMNS, list_spreads(counts))]),
        Section("Reconstruction kernels", [DataTable(("kernel", "scans"), list(counts["kernels"].items()))]),
        Section("Not recorded", [Listing([*list_unrecorded(counts), "ages and names of patients, on purpose"])]),
    ]
    return render_page("Contents of a store", state_counts(counts), sections, footer="Made by `dagman store stats`.")
