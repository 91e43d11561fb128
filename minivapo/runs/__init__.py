"""What people do with a training loop: a run on disk, its checkpoints, evaluation, a reward model."""
