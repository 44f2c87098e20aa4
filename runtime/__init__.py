"""What every run needs: flags, checkpoints, logs, processes."""
