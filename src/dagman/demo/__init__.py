"""`dagman demo`: the whole road on the built-in cohort, each question put to a pretrained and to a fresh network."""

from dagman.demo.road import DemoResult, run_demo

__all__ = ["DemoResult", "run_demo"]
