"""One module a stage: what it reads, does and writes. `cli.py` makes commands of them."""
