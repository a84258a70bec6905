"""MLNT: learning to learn from noisy labeled data (Li et al., CVPR 2019), as a library.

The modules follow the paper: `noise` makes wrong labels, `neighbors` the synthetic ones, `step` is
Algorithm 1, `teacher` and `mentor` its two companions, `training` the loop that any step function runs in.
Nothing here reads a parameter file, chooses a path or prints.
"""

__version__ = "0.1.0"
