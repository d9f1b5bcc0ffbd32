"""The layer in each way Python is run, at every point of a cancellation, and within its bounds."""
