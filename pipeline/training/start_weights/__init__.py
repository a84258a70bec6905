"""What a network starts from: nothing, timm's trained weights, or those of a file."""
