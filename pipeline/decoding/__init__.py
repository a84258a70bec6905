"""Image files: decoded, or listed to be decoded when they are wanted."""
