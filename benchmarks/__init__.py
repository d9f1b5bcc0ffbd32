"""Channel layers measured side by side: the same scenarios, real servers, separate processes."""
