"""What every command stands on: its command line, its device, its processes and its batches."""
