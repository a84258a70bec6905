"""The loop that every system shares, and what a step works on."""
