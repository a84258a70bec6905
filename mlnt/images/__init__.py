"""Images in batches: from memory or from files, normalised and augmented."""
