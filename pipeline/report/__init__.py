"""The results of one run: rows, figures, terminal, page."""
