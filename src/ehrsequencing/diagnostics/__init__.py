"""The doctor: reads a run directory and names what ails the run, with the evidence and the remedy."""
