"""params.yaml: its schema, how it is read, and the presets that change it."""
