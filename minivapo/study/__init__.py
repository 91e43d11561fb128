"""Experiments about the algorithm: ablations, sweeps, mechanisms, and the statistics behind a claim."""
