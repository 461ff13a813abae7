"""All of Ray: its start, the workers and where they are placed, and what goes wrong with them."""
