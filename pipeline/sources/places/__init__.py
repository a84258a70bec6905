"""Where files come from: folders, archives, URLs, whatever lies in them."""
