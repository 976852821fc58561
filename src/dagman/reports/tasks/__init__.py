"""Reports of the tasks' results."""
