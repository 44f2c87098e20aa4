"""The demo's scenes and captions."""
