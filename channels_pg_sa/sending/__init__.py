"""What goes out: sends, joins and leaves of many callers, gathered into batches and done in the database."""
