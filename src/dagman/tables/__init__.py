"""A user's items: scans, structures or points with their labels, from a table or a public data set."""
