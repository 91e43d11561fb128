"""Options of a run: fields with ranges (`fields`), and how words and YAML files become them (`parse`).

A room of its own, below the algorithm, because `minivapo.vapo.Config`, the cluster's `scaled.config.Settings` and the
arguments of every command share it. It imports no torch.
"""
