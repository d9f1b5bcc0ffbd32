"""The layer under load and faults for as long as one likes: `nox -s soak -- --minutes N`."""
