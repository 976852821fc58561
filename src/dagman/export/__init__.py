"""Encoders and models in the forms of other programs, each with the preprocessing that it needs."""
