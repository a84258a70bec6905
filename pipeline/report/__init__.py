"""The results of one run: the rows of its table, figures, terminal, pages."""
