"""What people look at: the live view, the report, loggers, and what each metric means."""
