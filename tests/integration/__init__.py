"""The layer under Channels' own consumers, commands and settings."""
