"""The demo in real browsers, one for each of its people."""
