"""A workspace: parameters, stages and presets in a folder, where `dvc repro` runs the installed package."""
