"""Training on Lightning Fabric: the loop, its plans, optimisation and durable checkpoints."""
