"""The commands about scans and stores of them."""
