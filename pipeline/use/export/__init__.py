"""Models and labels in the formats of the tools around."""
