"""The small examples, as their users start them."""
