"""The study directory: the journal, the lease and what is derived from them."""
