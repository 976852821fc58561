"""Export of an encoder as a Hugging Face folder, with code that runs without dagman."""
