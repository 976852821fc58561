"""`dagman demo`: the whole pipeline on a synthetic cohort, comparing pretrained with randomly initialised networks."""

from dagman.demo.pipeline import DemoResult, run_demo

__all__ = ["DemoResult", "run_demo"]
