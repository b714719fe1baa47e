"""What the commands and the server do, without a terminal: one module a question or task."""
