"""What runs inside a trial's own process, and what starts that process. No Ray but the functions of
`ray.tune` that users call."""
