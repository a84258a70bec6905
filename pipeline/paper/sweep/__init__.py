"""The experiments of a table, on this machine or on a cluster."""
