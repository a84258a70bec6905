"""The pipeline around `mlnt`: parameters, files, one command per DVC stage, and the report."""
