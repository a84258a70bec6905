"""Files with labels, as a folder, a list or their owner names them, until they are a `Dataset`."""
