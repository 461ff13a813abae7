"""Studies from Python: a script, a notebook, or an interactive session of a job."""
