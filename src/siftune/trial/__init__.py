"""The code inside a trial's process, and the code that starts the process. No Ray but the functions
of `ray.tune` that users call."""
