"""The paper: Algorithm 1 and what it is made of, an equation a function."""
