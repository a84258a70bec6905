"""MLNT: learning to learn from noisy labeled data (Li et al., CVPR 2019), as a library.

`method` is the paper, `baselines` what it is compared with, `noise` makes wrong labels, `training` is the loop that any
step function runs in, `images` feeds it. Nothing here reads a parameter file, chooses a path or prints.
"""
