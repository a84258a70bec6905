"""What is known before a network is trained: whether it can be, and how long that takes. No number depends on it."""
