"""Options that the commands about scans share."""

from __future__ import annotations

from typing import Annotated

import typer

Dask = Annotated[
    str | None,
    typer.Option(
        "--dask",
        metavar="ADDRESS|local",
        help="Address of a Dask scheduler whose workers do the work, such as tcp://node1:8786, or local. Default: processes "
        "of this machine.",
        show_default=False,
    ),
]
