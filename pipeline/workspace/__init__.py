"""The folder in which a person runs all this: how it is laid out, what a run there will do, and what is missing.

Made by `mlnt init`, it holds parameters, stages and presets, and `dvc repro` runs the installed package."""
