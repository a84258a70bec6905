"""The systems that the paper compares with, a method a file."""
