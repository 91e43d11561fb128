"""What a job needs before anyone pays for it: memory, time, and advice."""
