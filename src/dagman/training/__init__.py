"""From a store to a run: views, loader, loop, monitors, checkpoints."""
