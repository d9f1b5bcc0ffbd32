"""A chat of many rooms whose server processes meet only in the channel layer."""
