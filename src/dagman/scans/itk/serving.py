"""The child process: reads one NRRD or MetaImage file after another with SimpleITK, and may die of one.

A script of its own, so that it starts with nothing but SimpleITK. A request is a line of JSON on stdin, {"path", "voxels"}; the
answer is a line of JSON on stdout, followed by the voxels' bytes (Z Y X) where they were asked for.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import SimpleITK

from dagman.records.stopping import leave_stops_to_parent


def main() -> None:
    """Answer requests until stdin closes."""
    leave_stops_to_parent()
    # What the library prints must not come between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    answers.write(b"ready\n")
    answers.flush()
    for line in sys.stdin.buffer:
        request = json.loads(line)
        answer, image = _read(request["path"], request["voxels"])
        answers.write(json.dumps(answer).encode() + b"\n")
        if image is not None:
            # The view is the image's memory, which is held until it is written.
            answers.write(SimpleITK.GetArrayViewFromImage(image).data.cast("B"))
        answers.flush()


def _read(path: str, with_voxels: bool) -> tuple[dict[str, Any], SimpleITK.Image | None]:
    try:
        reader = SimpleITK.ImageFileReader()
        reader.SetFileName(path)
        reader.ReadImageInformation()
        answer = {
            "size": reader.GetSize(),
            "spacing": reader.GetSpacing(),
            "origin": reader.GetOrigin(),
            "direction": reader.GetDirection(),
            "components": reader.GetNumberOfComponents(),
            "pixel": SimpleITK.GetPixelIDValueAsString(reader.GetPixelID()),
        }
        if not with_voxels:
            return answer, None
        image = reader.Execute()
        voxels = SimpleITK.GetArrayViewFromImage(image)
        answer |= {"size": image.GetSize(), "spacing": image.GetSpacing(), "origin": image.GetOrigin()}
        answer |= {"direction": image.GetDirection(), "dtype": voxels.dtype.str, "shape": voxels.shape}
        return answer, image
    except Exception as error:
        return {"error": " ".join(str(error).split())[-300:] or type(error).__name__}, None


if __name__ == "__main__":
    main()
