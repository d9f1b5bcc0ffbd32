"""Tests that break what the layer stands on, and count messages: sent, received once, twice, lost."""
