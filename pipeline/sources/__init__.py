"""Where images and labels come from; every source ends in one `Dataset`."""
