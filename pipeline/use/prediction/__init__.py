"""A trained model in use, from its folder alone."""
