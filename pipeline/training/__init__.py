"""What the stages with a network share: the machine, the network, the data, fitting."""
