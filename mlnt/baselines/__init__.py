"""What MLNT is compared with, in the paper and since, a method a file."""
