"""The files that stages leave for each other: data sets, labels, features, models, checkpoints."""
