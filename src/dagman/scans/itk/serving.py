"""The child process that reads NRRD and MetaImage files with SimpleITK, one after another, and may crash.

It is a separate script, so that it loads little more than SimpleITK. A request is a line of JSON on stdin, {"path", "voxels"}; the
answer is a line of JSON on stdout, followed by the bytes of the voxels (Z Y X) if requested.
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
    # Output of the library must not get mixed with the answers.
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
            # The view shares the image's memory, so `image` must stay alive until it is written.
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
