"""What changes in a network on a cluster: packed rows, the output head, attention over several ranks, wider heads."""
