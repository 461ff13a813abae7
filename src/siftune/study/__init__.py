"""A study: what is searched, how and how long."""
