"""The numbers that the paper prints."""
