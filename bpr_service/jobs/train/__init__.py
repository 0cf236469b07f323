"""Train jobs: the trainer as a child process, then measured, registered and perhaps promoted."""
