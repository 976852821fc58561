"""Options that the commands about scans share."""

from __future__ import annotations

from typing import Annotated

import typer

Dask = Annotated[
    str | None,
    typer.Option(
        "--dask",
        metavar="ADDRESS|local",
        help="Run on a Dask cluster: the address of its scheduler, such as tcp://node1:8786, or local. Default: processes on "
        "this machine.",
        show_default=False,
    ),
]
