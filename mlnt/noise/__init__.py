"""Wrong labels: by a transition matrix, or by the image."""
