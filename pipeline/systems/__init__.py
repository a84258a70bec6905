"""The systems that are trained and compared."""
