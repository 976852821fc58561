"""The commands of the tasks, and the options they share."""
