"""One suite for every channel layer: what the specification says, and what went wrong in layers before this one."""
