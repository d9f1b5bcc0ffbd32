"""The demo: its rules, its presence, and its own check of itself."""
