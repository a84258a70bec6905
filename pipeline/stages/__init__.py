"""One module a stage: what it reads, does and writes. `pipeline.cli` makes commands of them."""
