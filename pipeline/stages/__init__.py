"""One module a stage, evaluate has two: what it reads, does and writes. `pipeline.cli` makes commands of them."""
