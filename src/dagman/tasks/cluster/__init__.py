"""Groups of structures by their features, and their map."""
