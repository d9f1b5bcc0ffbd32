"""What comes in: the one connection that LISTENs, what is unread and who waits for it, and what keeps a node alive."""
