"""An encoder as a folder of Hugging Face, whose code runs where dagman is not installed."""
