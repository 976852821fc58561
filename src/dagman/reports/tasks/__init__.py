"""The pages of the tasks' results."""
