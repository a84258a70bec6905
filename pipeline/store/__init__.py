"""What stages leave for each other: data sets, labels, embeddings, features, models, checkpoints; records."""
