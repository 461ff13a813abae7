"""All code that uses Ray: starting it, the workers, the placement of trials, and failures."""
