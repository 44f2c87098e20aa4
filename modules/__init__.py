"""Parts of the models too large for model.py."""
