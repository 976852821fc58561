"""The method of the paper, one file per part. Depends only on torch; no IO, no logging."""

from dagman.method.networks import Network, Outputs, copy_student
from dagman.method.step import Method, TeacherOutputs, ViewPair, student_losses, teacher_forward
from dagman.method.targets import Targets

__all__ = [
    "Method",
    "Network",
    "Outputs",
    "Targets",
    "TeacherOutputs",
    "ViewPair",
    "copy_student",
    "student_losses",
    "teacher_forward",
]
