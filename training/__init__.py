"""The parts of a training around its loop in train.py: batches of several processes, guards, log, announcements."""
