"""The method, section by section; torch alone, no IO, no logging."""

from dagman.method.networks import Look, Network, copy_student
from dagman.method.step import Losses, Method, Pair, pretraining_step
from dagman.method.targets import Targets

__all__ = ["Look", "Losses", "Method", "Network", "Pair", "Targets", "copy_student", "pretraining_step"]
