"""What came in and went out at a site: the chain of lines, and how people read it."""
