"""What the tests stand on: a private server, databases, a breakable network, layers and processes."""
