"""What a finished run is for: predictions by its model, and models and labels in the formats of other tools."""
