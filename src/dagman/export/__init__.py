"""Export of encoders and models to the formats of other programs, together with the required preprocessing."""
